"""Who does the work: this process, processes of this machine, or a Ray cluster. The images do not depend on it.

Workers only draw and judge; every file is written by the process that started them. On a Ray cluster the model and the
edits must be readable at the same paths on every machine (a shared folder, an embedded model or a hub id).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation.worker import Done, Task, Worker


class Executor(Protocol):
    """Runs tasks and yields each as it is done, in any order; the first error ends it and propagates."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Each task done."""
        ...


class Local:
    """In this process, one task after the other."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Each task done, in order."""
        worker = Worker()
        for task in tasks:
            yield worker.run(task)


@dataclass(frozen=True)
class Processes:
    """In `jobs` processes of this machine, each with a model of its own (and, on "cuda", a GPU of its own)."""

    jobs: int

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Each task done; `EraseKitError` where a process dies (memory), and no process is left behind."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from concurrent.futures.process import BrokenProcessPool

        context = multiprocessing.get_context("spawn")
        before = set(multiprocessing.active_children())
        counter = context.Value("i", 0)
        pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_start, initargs=(counter,))
        try:
            for future in as_completed([pool.submit(_work, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise EraseKitError("a worker process died (out of memory?): run the same command again with fewer --jobs, "
                                "what is finished is kept") from error  # fmt: skip
        finally:
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()  # after an error or Ctrl-C nobody waits for the shards in flight
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Ray:
    """On a Ray cluster (extra `ray`): `address` "local" starts one here, "auto" or host:port joins one.

    On "cuda" the cluster's GPUs are shared out: one for each worker while there are as many.
    """

    address: str = "auto"
    workers: int = 2

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Each task done; `UsageError` without the package or for a single GPU by its number, `EraseKitError` where the
        cluster has no GPU for "cuda", or it or a worker is lost."""
        ray = _import_ray()
        started = not ray.is_initialized()
        if started:
            _connect(ray, self.address, self.workers)
        try:
            yield from _spread(ray, _actors(ray, self.workers, {task.brush.device for task in tasks}), tasks)
        finally:
            if started:
                ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed: pip install 'erasekit[ray]'") from error
    return ray


def _connect(ray: Any, address: str, workers: int) -> None:
    own = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EraseKitError(f"no Ray cluster at {address!r} ({reason}): start one with `ray start --head`, or give "
                            "--ray local") from error  # fmt: skip


def _actors(ray: Any, workers: int, devices: set[str]) -> list[Any]:
    """The workers. Ray shows an actor only those GPUs that it asked for, the first of them as "cuda"."""
    actor = ray.remote(Worker)
    numbered = sorted(device for device in devices if device.startswith("cuda:"))
    if numbered:
        raise UsageError(f"--ray gives every worker a GPU of its own, so none is {numbered[0]}: give --device cuda")
    if "cuda" in devices:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus < 1:
            raise EraseKitError("this Ray cluster has no GPU: join machines that have one, or give --device cpu")
        together = -(-workers // gpus)  # on one GPU; Ray counts in ten-thousandths, and a sum over 1 would not fit
        actor = actor.options(num_gpus=1 if together == 1 else 10_000 // together / 10_000)
    return [actor.remote() for _ in range(workers)]


def _spread(ray: Any, actors: Sequence[Any], tasks: Sequence[Task]) -> Iterator[Done]:
    """Each actor has one task at a time; who is free takes the next."""
    waiting, running = list(reversed(tasks)), {}
    for actor in actors:
        if waiting:
            running[actor.run.remote(waiting.pop())] = actor
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(ready)
        yield _fetched(ray, ready)
        if waiting:
            running[actor.run.remote(waiting.pop())] = actor


def _fetched(ray: Any, ready: Any) -> Done:
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:  # what the worker raised, wrapped by Ray
        if isinstance(error.cause, EraseKitError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise EraseKitError("a Ray worker was lost: look at the cluster and run the same command again, what is "
                            "finished is kept") from error  # fmt: skip


# -- inside a worker process ---------------------------------------------------------------------------------------

_own: list[tuple[Worker, int]] = []  # the process's worker and its number, set once by `_start`


def _start(counter: Any) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        _own.append((Worker(), counter.value))
        counter.value += 1


def _end_with_parent() -> None:
    """A killed main process must leave no worker behind."""
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.join()
        os._exit(1)


def _work(task: Task) -> Done:
    worker, number = _own[0]
    return worker.run(replace(task, brush=replace(task.brush, device=_device(task.brush.device, number))))


def _device(device: str, number: int) -> str:
    """The worker's own GPU for "cuda" where there are several; any other device as it is."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{number % max(torch.cuda.device_count(), 1)}"
