"""The errors that a user can cause, each one clear line that names the remedy.

The command line prints the line and nothing else: `UsageError` ends with exit code 2, every other
`EraseKitError` with exit code 1 (a traceback only with `--debug`).
"""


class EraseKitError(Exception):
    """Something the user can put right; `str(error)` is one line: what is wrong, then the remedy."""


class UsageError(EraseKitError, ValueError):
    """The request itself is wrong (an empty target, an unknown method or parameter, a missing anchor)."""


class ModelError(EraseKitError):
    """A model cannot be read: no such folder, a file missing or damaged, NaN in a weight."""


class EditError(EraseKitError):
    """An edit cannot be read, applied or exported: the message names the op or the module."""


class BaseMismatchError(EditError):
    """An edit was made for other weights than these; the message names the modules that differ."""


class TrainingError(EraseKitError):
    """Training cannot go on: the loss is no number, the checkpoint is another run's, the GPU's memory is full."""


class DivergenceError(TrainingError):
    """The numbers of a fit are no longer finite: its loss, the pictures that it learns from, or what it measured of itself.
    Run again, it ends so again."""


class InfeasibleError(EraseKitError):
    """A method cannot do what was asked (constraints that conflict, residual above its bound)."""
