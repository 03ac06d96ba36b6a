"""What a benchmark measures: seconds by phase, peak memory of a fresh process, bytes; and the environment.

Phases: `read` (files into tensors), `encode` (prompts into features), `solve` (the rest of the fit, the self-check
included), `fingerprint` (hashes of the edited weights' originals), `write` (the edit's file). Imports are timed
apart. Memory is the high-water mark of the process, libraries and mapped files included.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

PHASES = ("read", "encode", "solve", "fingerprint", "write")
IMPORTS = (
    "transformers", "transformers.models.clip.tokenization_clip", "erasekit.api", "erasekit.backbones.sd",
    "erasekit.edit", "erasekit.io",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One call of `erasekit.erase`; without `anchor` the method's or the preset's own."""

    method: str
    targets: tuple[str, ...]
    retain: tuple[str, ...] = ()
    anchor: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    retain_cache: str | None = None

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        given = {name: value for name, value in asdict(self).items() if name not in ("targets", "parameters")}
        return {name: value for name, value in given.items() if value is not None} | self.parameters


class Clock:
    """Exclusive seconds by label: what runs inside another label is not counted in the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._cpu = time.process_time()
        self._stack: list[str] = []
        self._since = 0.0
        self._plain: list[tuple[object, str, Callable]] = []

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def watch(self, owner: object, function: str, name: str) -> None:
        """Counts every call of the function from the main thread under `name`, until `unwatch`."""
        plain: Callable = getattr(owner, function)
        self._plain.append((owner, function, vars(owner)[function]))

        @wraps(plain)
        def timed(*args: object, **options: object) -> object:
            if threading.current_thread() is not threading.main_thread():
                return plain(*args, **options)
            with self.label(name):
                return plain(*args, **options)

        setattr(owner, function, timed)

    def unwatch(self) -> None:
        """Everything that is watched is as it was."""
        for owner, function, plain in reversed(self._plain):
            setattr(owner, function, plain)
        self._plain.clear()

    def cpu(self) -> float:
        """Seconds of all threads since the clock was made."""
        return time.process_time() - self._cpu

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


def high_water() -> int:
    """Peak resident bytes of this process (getrusage would count what the parent had before exec)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def watched() -> Iterator[Clock]:
    """A clock that knows which of erasekit's functions read, encode and hash."""
    from erasekit.backbones import _clip, _weights, sd
    from erasekit.methods import _cross, erasepro

    clock = Clock()
    clock.watch(_weights.FolderWeights, "read", "read")
    clock.watch(sd.SDBackbone, "from_folder", "read")
    clock.watch(sd.SDBackbone, "fingerprint", "fingerprint")
    for module in (erasepro, _cross):
        clock.watch(module, "fingerprints", "fingerprint")  # hashed in threads
    for part in ("embed", "layer", "advance", "output", "attention_input", "features"):
        clock.watch(_clip.ClipTower, part, "encode")
    try:
        yield clock
    finally:
        clock.unwatch()


def measured(work: Work, folder: Path, out: Path) -> tuple[dict[str, Any], Any]:
    """Opens the folder, fits, writes the edit: what that took, as plain data; and the edit."""
    started = time.perf_counter()
    for name in IMPORTS:
        __import__(name)
    from erasekit import erase, methods

    methods.resolve(work.method)
    imports = time.perf_counter() - started
    with watched() as clock:
        with clock.label("solve"):
            edit = erase(str(folder), work.targets, **work.options())
        with clock.label("write"):
            edit.save(out)
        cpu = clock.cpu()
    weights = sum(map(weight_bytes, edit.ops))
    return {
        "seconds": round(sum(clock.seconds.values()), 3),
        "cpu_seconds": round(cpu, 3),
        "parts": {name: round(value, 3) for name, value in clock.seconds.items()},
        "import_seconds": round(imports, 3),
        "peak_rss_mb": round(high_water() / 1e6),
        "modules": len(edit.ops),
        "edit_bytes": out.stat().st_size,
        "weights_over_edit": round(weights / out.stat().st_size, 1),
        "residual": edit.self_check["residual"],
        "retained_drift": edit.self_check["retained_drift"],
    }, edit


def weight_bytes(op: Any) -> int:
    """Bytes of the float32 matrix that the op changes."""
    tensors = op.tensors()
    return 4 * (tensors["delta"].numel() if "delta" in tensors else len(tensors["up"]) * tensors["down"].shape[1])


def warm(folder: Path) -> None:
    """Reads once what an edit reads, so that no measurement waits for the disk."""
    from safetensors import safe_open
    from shapes import edited

    with (folder / "text_encoder" / "model.safetensors").open("rb") as file:
        while file.read(1 << 24):
            pass
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            if edited(name):
                file.get_tensor(name).sum()


def child(script: Path, specification: dict[str, Any], limit: float | None = None) -> dict[str, Any]:
    """Runs `script --child @FILE`, with the specification in the file, in a fresh interpreter and returns what it printed
    last; {"skipped": why} where it takes over `limit` seconds, imports included, {"failed": why} where it ends with an
    error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "asked.json"  # an argument cannot hold 30,000 retained prompts
        file.write_text(json.dumps(specification), encoding="utf-8")
        command = [sys.executable, str(script), "--child", f"@{file}"]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"skipped": f"over {limit:g} s"}
    if done.returncode:
        return {"failed": f"exit code {done.returncode}, see the standard error"}
    return json.loads(done.stdout.splitlines()[-1])


def given(words: str) -> dict[str, Any]:
    """The specification behind `--child`: JSON, or @FILE."""
    return json.loads(Path(words[1:]).read_text(encoding="utf-8") if words.startswith("@") else words)


def environment() -> dict[str, object]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(), "machine": platform.machine()}  # fmt: skip
