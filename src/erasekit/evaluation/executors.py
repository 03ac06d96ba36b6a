"""Who does the work: this process, processes of this machine, or a Ray cluster. The images do not depend on it.

Workers only draw and judge; every file is written by the process that started them. On a Ray cluster the model and the
edits must be readable at the same paths on every machine (a shared folder, an embedded model or a hub id).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation.worker import Done, Task, Worker

if TYPE_CHECKING:
    from concurrent.futures import Future

AHEAD = 2  # tasks for each process, so that none waits for its next


class Executor(Protocol):
    """Runs tasks and yields each as it is done, in any order; the first error ends it and propagates.

    A task may hold the images of its shard: each is taken only when somebody is free to do it, or soon will be.
    """

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Each task done."""
        ...


class Local:
    """In this process, one task after the other."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Each task done, in order."""
        worker = Worker()
        for task in tasks:
            yield worker.run(task)


@dataclass(frozen=True)
class Processes:
    """In `jobs` processes of this machine, each with a model of its own (and, on "cuda", a GPU of its own). `begin` is called
    in each process before its first task: a function of a module, such as one that silences the libraries there."""

    jobs: int
    begin: Callable[[], None] | None = None

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Each task done; `EraseKitError` where a process dies (memory), and no process is left behind."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        context = multiprocessing.get_context("spawn")
        before = set(multiprocessing.active_children())
        counter = context.Value("i", 0)
        pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_start, initargs=(counter, self.begin))
        whole = False
        try:
            yield from _few_at_once(lambda task: pool.submit(_work, task), tasks, AHEAD * self.jobs)
            whole = True
        except BrokenProcessPool as error:
            raise EraseKitError("a worker process died (out of memory?): run the same command again with fewer --jobs, "
                                "what is finished is kept") from error  # fmt: skip
        finally:
            for child in set() if whole else set(multiprocessing.active_children()) - before:
                child.terminate()  # after an error or Ctrl-C nobody waits for the shards in flight
            pool.shutdown(wait=True, cancel_futures=True)


def _few_at_once(submit: Callable[[Task], Future[Done]], tasks: Iterable[Task], most: int) -> Iterator[Done]:
    """What is submitted, as it is done; a task is taken when fewer than `most` are under way."""
    from concurrent.futures import FIRST_COMPLETED, wait

    waiting = iter(tasks)
    running = {submit(task) for task in islice(waiting, most)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda one: one.exception() is not None):  # what is done is kept before an error
            yield future.result()
            running |= {submit(task) for task in islice(waiting, 1)}


@dataclass(frozen=True)
class Ray:
    """On a Ray cluster (extra `ray`): `address` "local" starts one here, "auto" or host:port joins one.

    On "cuda" the cluster's GPUs are shared out: one for each worker while there are as many.
    """

    address: str = "auto"
    workers: int = 2

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Each task done (all are of one device); `UsageError` without the package or for a single GPU by its number,
        `EraseKitError` where the cluster has no GPU for "cuda", or it or a worker is lost."""
        ray = _import_ray()
        started = not ray.is_initialized()
        if started:
            _connect(ray, self.address, self.workers)
        try:
            waiting = iter(tasks)
            for first in islice(waiting, 1):
                yield from _spread(ray, _actors(ray, self.workers, first.brush.device), chain([first], waiting))
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


def _actors(ray: Any, workers: int, device: str) -> list[Any]:
    """The workers. Ray shows an actor only those GPUs that it asked for, the first of them as "cuda"."""
    actor = ray.remote(Worker)
    if device.startswith("cuda:"):
        raise UsageError(f"--ray gives every worker a GPU of its own, so none is {device}: give --device cuda")
    if device == "cuda":
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus < 1:
            raise EraseKitError("this Ray cluster has no GPU: join machines that have one, or give --device cpu")
        together = -(-workers // gpus)  # on one GPU; Ray counts in ten-thousandths, and a sum over 1 would not fit
        actor = actor.options(num_gpus=1 if together == 1 else 10_000 // together / 10_000)
    return [actor.remote() for _ in range(workers)]


def _spread(ray: Any, actors: Sequence[Any], tasks: Iterable[Task]) -> Iterator[Done]:
    """Each actor has one task at a time; who is free takes the next."""
    waiting = iter(tasks)
    running = {actor.run.remote(task): actor for actor, task in zip(actors, waiting, strict=False)}
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(ready)
        yield _fetched(ray, ready)
        for task in islice(waiting, 1):
            running[actor.run.remote(task)] = actor


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


def _start(counter: Any, begin: Callable[[], None] | None) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin()
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
