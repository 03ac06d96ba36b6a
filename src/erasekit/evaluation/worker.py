"""A worker: draws a shard and has it judged. It writes nothing: images and verdicts go back to who asked."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.errors import EditError, ModelError
from erasekit.evaluation import drawing
from erasekit.evaluation.shards import Shard
from erasekit.files import read_bytes

if TYPE_CHECKING:
    from erasekit.edit import Edit
    from erasekit.evaluation.judges import Judge
    from erasekit.evaluation.suites import Sampling


@dataclass(frozen=True)
class Pinned:
    """A file as it was when the run began: shards are kept under this hash, so nothing else may be drawn with it."""

    path: Path
    sha256: str

    def read(self) -> bytes:
        """Its content; `EditError` where that is another by now."""
        data = read_bytes(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise EditError(f"{self.path} was overwritten after the run began: run the same command again, what is "
                            "finished is kept")  # fmt: skip
        return data


@dataclass(frozen=True)
class Brush:
    """What draws an arm: a model, and perhaps an edit's file, or noise of that edit's norm (`noise` is its seed)."""

    model: str
    edit: Pinned | None = None
    noise: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Task:
    """One shard to finish. `judges`: the spec and the `weights_sha256` of each, under which the verdicts are kept. `pngs`:
    its images, where they were drawn before and are only to be judged."""

    key: str
    shard: Shard
    brush: Brush
    sampling: Sampling
    judges: tuple[tuple[str, str], ...]
    pngs: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Done:
    """A finished shard: its PNGs and the judgements of each (judge's name -> status and data), in its items' order."""

    key: str
    pngs: tuple[bytes, ...]
    judgements: tuple[dict[str, dict[str, Any]], ...]
    seconds: float


@dataclass
class Worker:
    """Draws and judges; keeps the last model, edit and judges for the next task."""

    _pipe: tuple[tuple[str, ...], Any] | None = None
    _edit: tuple[Brush, Edit] | None = None
    _texts: tuple[Brush, drawing.Encoded] | None = None
    _judges: dict[str, Judge] = field(default_factory=dict)

    def run(self, task: Task) -> Done:
        """The task done. Errors of the model, the edit or a judge propagate: none is ever taken for a verdict."""
        start = time.perf_counter()
        with drawing.one_thread(task.brush.device):
            pngs = task.pngs or self._draw(task)
            judgements = self._judge(task, pngs)
        return Done(task.key, pngs, judgements, time.perf_counter() - start)

    def _draw(self, task: Task) -> tuple[bytes, ...]:
        items = task.shard.items
        pipe = self._model(task)
        with ExitStack() as stack:
            encode = True
            if task.brush.edit is not None:
                edit = self._loaded(task.brush, pipe)
                stack.enter_context(edit.applied(pipe))
                encode = _only_weights(edit)
            own = items[0].prompt.guidance  # one in a shard
            sampling = task.sampling if own is None else replace(task.sampling, guidance=own)
            images = drawing.draw(
                pipe, [i.prompt.text for i in items], [i.seed for i in items], sampling, encode=encode,
                known=self._encoded(task.brush),
            )  # fmt: skip
        return tuple(drawing.to_png(image, task.shard.label(i)) for image, i in zip(images, items, strict=True))

    def _judge(self, task: Task, pngs: tuple[bytes, ...]) -> tuple[dict[str, dict[str, Any]], ...]:
        images, texts = drawing.to_tensor(pngs), [item.prompt.text for item in task.shard.items]
        referees = [self._referee(*one) for one in task.judges]
        verdicts = [(judge.name, judge.judge(images, texts)) for judge in referees]
        return tuple(
            {name: {**found[i].data, "status": found[i].status} for name, found in verdicts} for i in range(len(pngs))
        )

    def _model(self, task: Task) -> Any:
        key = (task.brush.model, task.brush.device, task.sampling.scheduler)
        if self._pipe is None or self._pipe[0] != key:
            from erasekit import models

            self._pipe = self._edit = None  # two models at once may not fit
            pipe = models.load(task.brush.model, device=task.brush.device)
            drawing.use_scheduler(pipe, task.sampling.scheduler)
            self._pipe = (key, pipe)
        return self._pipe[1]

    def _loaded(self, brush: Brush, pipe: Any) -> Edit:
        if self._edit is None or self._edit[0] != brush:
            from erasekit import io
            from erasekit.evaluation.controls import random_like

            assert brush.edit is not None
            edit = io.parse(brush.edit.read(), brush.edit.path)
            self._edit = (brush, edit if brush.noise is None else random_like(edit, pipe, seed=brush.noise))
        return self._edit[1]

    def _encoded(self, brush: Brush) -> drawing.Encoded:
        """What this brush's text encoder gave; another edit, noise or model begins anew."""
        if self._texts is None or self._texts[0] != brush:
            self._texts = (brush, drawing.Encoded())
        return self._texts[1]

    def _referee(self, spec: str, sha256: str) -> Judge:
        if spec not in self._judges:
            from erasekit.evaluation import judges

            self._judges[spec] = judges.get(spec)
        if self._judges[spec].weights_sha256 != sha256:
            raise ModelError(f"files of the judge {spec} were changed after the run began: run the same command again")
        return self._judges[spec]


def _only_weights(edit: Edit) -> bool:
    """Whether the edit acts through weights alone, so that prompts may be encoded apart from the pipeline's call."""
    from erasekit.ops import LinearOp

    return all(isinstance(op, LinearOp) for op in edit.ops)
