"""Who draws does not matter: the same bytes from this process, from processes and from a Ray cluster.

The tasks name no judge: judges that answer by rule do not exist in another process.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import edits
import fakes
import pytest
import torch

from erasekit import models
from erasekit.errors import EraseKitError, ModelError, UsageError
from erasekit.evaluation import executors, judges, shards
from erasekit.evaluation.worker import Brush, Done, Pinned, Task, Worker
from erasekit.files import file_sha256


@pytest.fixture
def tasks(sd1_folder: Path, tmp_path: Path) -> list[Task]:
    path = tmp_path / "mine.safetensors"
    edits.edit(models.load(sd1_folder)).save(path)
    own, file = Brush(str(sd1_folder)), Pinned(path, file_sha256(path))
    brushes = {"base": own, "edit": Brush(own.model, file), "random": Brush(own.model, file, noise=0)}
    cut = {arm: shards.split(arm, fakes.PROMPTS[:3], size=4, context=arm) for arm in brushes}
    return [Task(shard.digest, shard, brush, fakes.suite().sampling, ())
            for arm, brush in brushes.items() for shard in cut[arm]]  # fmt: skip


def contents(done: list[Done]) -> dict[str, tuple]:
    assert len({one.key for one in done}) == len(done)
    return {one.key: (one.pngs, one.judgements) for one in done}


class Ready(SimpleNamespace):
    """A Ray of one machine that runs a task when it is waited for."""

    exceptions = SimpleNamespace(RayTaskError=type("RayTaskError", (Exception,), {}), RayError=ConnectionError)

    def wait(self, running, *, num_returns):
        self.most = max(self.most, len(running))
        return [running[-1]], running[:-1]

    def get(self, ready):
        return ready()


class Actor:
    """Answers with the task itself, later."""

    def __init__(self) -> None:
        self.run = SimpleNamespace(remote=lambda task: lambda: task)


def test_ray_gives_every_task_to_whoever_is_free() -> None:
    ray = Ready(most=0)
    assert sorted(executors._spread(ray, [Actor(), Actor()], list(range(7)))) == list(range(7))
    assert ray.most == 2, "as many at once as there are workers"
    assert list(executors._spread(ray, [Actor(), Actor()], [])) == []


def test_a_task_is_taken_only_when_somebody_is_nearly_free() -> None:
    """A task may hold a shard's images: a judge that was changed makes one of every shard of the run."""
    taken = []

    def tasks():
        for i in range(20):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(2) as pool:
        for done, _ in enumerate(executors._few_at_once(lambda task: pool.submit(abs, task), tasks(), 4), 1):
            assert len(taken) <= done + 4
    assert done == len(taken) == 20
    taken.clear()
    for done, _ in enumerate(executors._spread(Ready(most=0), [Actor(), Actor()], tasks())):
        assert len(taken) <= done + 2
    assert len(taken) == 20
    with ThreadPoolExecutor(2) as pool, pytest.raises(ZeroDivisionError):
        list(executors._few_at_once(lambda task: pool.submit(divmod, 1, task), iter([1, 0, 1]), 4))


def test_what_a_ray_worker_raises_comes_back_as_it_was() -> None:
    ray = Ready(most=0)
    error = ray.exceptions.RayTaskError("wrapped")
    error.cause = ModelError("no such model: give another")

    def fail():
        raise error

    with pytest.raises(ModelError, match="no such model"):
        executors._fetched(ray, fail)

    def lost():
        raise ConnectionError

    with pytest.raises(EraseKitError, match="a Ray worker was lost"):
        executors._fetched(ray, lost)


def test_without_ray_the_extra_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'erasekit\[ray\]'"):
        list(executors.Ray("local").run([]))


def test_each_process_has_its_own_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [executors._device("cuda", i) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert executors._device("cpu", 1) == "cpu" and executors._device("cuda:1", 0) == "cuda:1"


class Cluster(Ready):
    """A Ray with so many GPUs; its actors are what they asked for."""

    def remote(self, cls):
        return SimpleNamespace(remote=lambda: 0, options=lambda *, num_gpus: SimpleNamespace(remote=lambda: num_gpus))

    def cluster_resources(self):
        return {"CPU": 8.0} | ({"GPU": float(self.gpus)} if self.gpus else {})


def test_ray_workers_on_gpus_ask_for_their_share() -> None:
    """Ray shows an actor no GPU that it did not ask for, and shows one that asks for one always another."""
    assert executors._actors(Cluster(gpus=4), 4, "cuda") == [1, 1, 1, 1]
    assert executors._actors(Cluster(gpus=8), 2, "cuda") == [1, 1]
    shares = executors._actors(Cluster(gpus=2), 6, "cuda")
    assert len(shares) == 6 and len(set(shares)) == 1 and 0.99 < 3 * shares[0] <= 1 and round(shares[0], 4) == shares[0]
    assert executors._actors(Cluster(gpus=0), 2, "cpu") == [0, 0]
    with pytest.raises(EraseKitError, match="has no GPU: join machines"):
        executors._actors(Cluster(gpus=0), 2, "cuda")
    with pytest.raises(UsageError, match="give --device cuda"):
        executors._actors(Cluster(gpus=2), 2, "cuda:1")


def test_a_judge_that_was_changed_meanwhile_is_refused(tasks: list[Task], monkeypatch) -> None:
    monkeypatch.setattr(judges, "get", lambda spec: fakes.RuleJudge())
    with pytest.raises(
        ModelError, match=r"the judge rule were changed after the run began: run the same command again"
    ):
        Worker()._referee("rule", "f" * 64)
    assert Worker()._referee("rule", fakes.RuleJudge.weights_sha256).name == fakes.RuleJudge.name


def test_the_threads_of_torch_are_put_back(tasks: list[Task], monkeypatch) -> None:
    monkeypatch.setattr(judges, "get", lambda spec: fakes.RuleJudge())
    before = torch.get_num_threads()
    list(executors.Local().run(tasks[:1]))
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_and_leave_none_behind(tasks: list[Task], capfd) -> None:
    import multiprocessing

    from erasekit.cli import terminal

    alone = list(executors.Local().run(tasks))
    capfd.readouterr()
    together = list(executors.Processes(2, terminal.quiet).run(tasks))
    assert capfd.readouterr().err == "", "no bars of the libraries, no complaint of Python's about what is left"
    assert contents(alone) == contents(together) and len(alone) == len(tasks)
    assert multiprocessing.active_children() == []
    broken = Task("x", tasks[0].shard, Brush("no/such/model/at/all"), tasks[0].sampling, ())
    with pytest.raises(ModelError, match="no model"):
        list(executors.Processes(2).run([broken, *tasks]))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_two_workers_of_a_real_ray_cluster_give_the_same_bytes(tasks: list[Task]) -> None:
    pytest.importorskip("ray")
    alone, together = list(executors.Local().run(tasks)), list(executors.Ray("local", workers=2).run(tasks))
    assert contents(alone) == contents(together) and len(alone) == len(tasks)
