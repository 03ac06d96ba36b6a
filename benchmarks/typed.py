"""A benchmark's edit as a person types it: `erasekit erase` in a process of its own, from its start to its end."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Work


def words(work: Work, folder: str, out: str) -> list[str]:
    """What is typed behind `erasekit`."""
    asked = ["erase", *work.targets, "--model", folder, "--method", work.method, "--out", out]
    asked += ["--anchor", work.anchor] if work.anchor is not None else []
    asked += ["--retain", *work.retain] if work.retain else []
    return asked + (["--set", *(f"{key}={value}" for key, value in work.parameters.items())] if work.parameters else [])


def run(work: Work, folder: Path) -> dict[str, Any]:
    """Wall seconds and peak memory of the command, interpreter, imports, self-check and file included.

    Call it once in a process that has imported little: the peak is the largest of this process's children, and a child's is
    at least what its parent had.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asked = words(work, str(folder), str(Path(temporary) / "edit.safetensors"))
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "erasekit", *asked], stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    if done.returncode:
        return {"failed": f"exit code {done.returncode}, see the standard error"}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    command = shlex.join(["erasekit", *words(work, "FOLDER", "EDIT.safetensors")])
    return {"command": command, "seconds": round(seconds, 3), "peak_rss_mb": round(peak / 1e6)}
