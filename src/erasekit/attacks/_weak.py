"""A deliberately weak edit: the same one, put on at a part of its strength.

What `Edit.apply(scale=...)` weakens is code, too. Linear ops and the adapters (SPM, Receler) add something to what a layer puts
out, and `scale` multiplies that. IRECE adds nothing; its rho, how much of the signal goes where the target is seen, is what it
has of strength: at 0.3 of the default 0.75 the signal keeps 97 % there. Its `variant=replace` has none.
"""

from __future__ import annotations

from erasekit.edit import Adapter, Edit, Guidance
from erasekit.guidances import irece
from erasekit.ops import Op

ADAPTERS = ("spm", "receler")
"""Adapters whose output the scale multiplies."""


def rigid(edit: Edit) -> str:
    """Why the edit has no weaker form, in words; empty where it has one.

    One op that cannot be weakened is enough: with the others weakened the edit would still be a strong one.
    """
    return next(filter(None, map(_why, edit.ops)), "")


def _why(op: Op) -> str:
    if isinstance(op, Guidance):
        return (
            irece.rigid(op) if op.guidance == "irece" else f"{op.label} is code that is not known to have a weaker form"
        )
    if isinstance(op, Adapter) and op.adapter not in ADAPTERS:
        return f"{op.label} is code that is not known to have a weaker form"
    return ""
