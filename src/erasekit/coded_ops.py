# ruff: noqa: D102 - what the kinds override is documented once, in Op.
"""The pieces of an edit that need code which knows them, and the table of all kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from erasekit.ops import Dense, LowRank, Op, Projection, set_fields


@dataclass(frozen=True, eq=False, init=False)
class Adapter(Op):
    """Wraps one module with code of the closed table `attach.ADAPTERS`, found under the name `adapter`.

    `tensors` are kept as `weights`; `config` is plain data (JSON).
    """

    component: str
    module: str
    adapter: str
    weights: dict[str, Tensor]
    config: dict[str, Any]
    kind: ClassVar[str] = "adapter"

    def __init__(
        self,
        component: str,
        module: str,
        adapter: str,
        tensors: Mapping[str, Tensor] = MappingProxyType({}),
        config: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        set_fields(
            self, component=component, module=module, adapter=adapter, weights=dict(tensors), config=dict(config)
        )
        self._finite()

    @property
    def label(self) -> str:
        """Says which code; an adapter beside a whole component has no module."""
        return f"the {self.adapter} adapter op on {self.site.removesuffix('/')}"

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"adapter": self.adapter, "config": self.config}


@dataclass(frozen=True, eq=False, init=False)
class Guidance(Op):
    """Acts on embeddings or the sampler with code of the closed table `attach.GUIDANCES`, named `guidance`.

    It stands at no module: `component` and `module` are empty. `tensors` are kept as `weights`.
    """

    guidance: str
    weights: dict[str, Tensor]
    config: dict[str, Any]
    kind: ClassVar[str] = "guidance"

    def __init__(
        self,
        guidance: str,
        tensors: Mapping[str, Tensor] = MappingProxyType({}),
        config: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        set_fields(self, component="", module="", guidance=guidance, weights=dict(tensors), config=dict(config))
        self._finite()

    @property
    def label(self) -> str:
        return f"the guidance op {self.guidance!r}"

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "guidance": self.guidance, "config": self.config}


KINDS: dict[str, type[Op]] = {kind.kind: kind for kind in (LowRank, Dense, Projection, Adapter, Guidance)}
