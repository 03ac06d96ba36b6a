"""The loop: plain Adam, to the bit the same after a kill, and one clear line for whatever ends it."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from erasekit.errors import DivergenceError, EditError, TrainingError, UsageError
from erasekit.training.checkpoint import FILE, Checkpoint
from erasekit.training.loop import State, Step, generator, train
from erasekit.training.settings import TrainingConfig

SMALL = TrainingConfig(steps=7, rate=0.1, save_every=2)


def leaves() -> dict[str, torch.Tensor]:
    return {"b": torch.zeros(3, requires_grad=True), "a": torch.ones(2, 3, requires_grad=True)}


def noisy(trained: dict[str, torch.Tensor]):
    """A loss that draws: (a x - b - 2)^2 at a random x."""

    def loss(step: Step) -> torch.Tensor:
        x = torch.randn(3, generator=step.generator("x"))
        return (trained["a"] * x - trained["b"] - 2).square().mean()

    return loss


def run(config: TrainingConfig = SMALL, *, seed: int = 0, stop: int | None = None, place: Path | None = None, **rest):
    """The trained tensors and the losses; `stop` ends the run after so many steps, as a kill would."""
    trained = leaves()

    def progress(done: int, total: int, what: str) -> None:
        if done == stop:
            raise KeyboardInterrupt

    kept = Checkpoint.at(place, config.decisive() | {"seed": seed}) if place else None
    losses = train(trained, noisy(trained), config, seed=seed, checkpoint=kept, progress=progress, **rest)
    return trained, losses


def equal(one, other) -> bool:
    return all(torch.equal(one[0][name], other[0][name]) for name in one[0]) and one[1] == other[1]


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_it_is_plain_adam(decay: float) -> None:
    config = TrainingConfig(steps=7, rate=0.1, accumulate=2, clip=0.5, decay=decay)
    found, losses = run(config, seed=3, schedule=lambda step: 1 / (step + 1))
    own = leaves()
    adam = torch.optim.AdamW(own.values(), lr=0.1, weight_decay=decay)
    for index in range(7):
        adam.param_groups[0]["lr"] = 0.1 / (index + 1)
        values = [noisy(own)(Step(3, index, part)) for part in range(2)]
        adam.zero_grad()
        (sum(values) / 2).backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 0.5)
        adam.step()
        assert losses[index] == pytest.approx(float(sum(values).detach()) / 2)
    assert all(torch.allclose(found[name], own[name], atol=1e-6) for name in own)


def test_the_average_is_the_result() -> None:
    found, _ = run(TrainingConfig(steps=3, rate=0.1, ema=0.5))
    states = [run(TrainingConfig(steps=n, rate=0.1))[0]["a"] for n in (1, 2, 3)]
    wanted = leaves()["a"]
    for state in states:
        wanted = 0.5 * wanted + 0.5 * state
    assert torch.allclose(found["a"], wanted, atol=1e-6)


def test_tensors_that_take_turns_are_averaged_as_if_alone() -> None:
    def averaged(names: str) -> dict[str, torch.Tensor]:
        trained = {name: torch.zeros(3, requires_grad=True) for name in names}

        def loss(step: Step) -> torch.Tensor:
            own = names[step.index % len(names)]
            return (trained[own] - torch.randn(3, generator=generator(own, step.index // len(names)))).square().mean()

        config = TrainingConfig(steps=4 * len(names), rate=0.1, ema=0.7)
        train(trained, loss, config, seed=0, progress=lambda *_: None)
        return trained

    both, alone = averaged("ab"), averaged("a") | averaged("b")
    assert all(torch.equal(both[name], alone[name]) and bool(both[name].any()) for name in "ab")


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_trained_is_put_in_again_for_the_backward_pass_only_where_it_recomputes(recompute: bool) -> None:
    entered, trained = [], leaves()

    @contextmanager
    def active():
        entered.append(1)
        yield

    train(trained, noisy(trained), TrainingConfig(steps=3, accumulate=2, recompute=recompute), seed=0, active=active,
          progress=lambda *_: None)  # fmt: skip
    assert len(entered) == 6 * recompute


def test_a_state_is_read_in_one_pass_and_names_that_begin_alike_are_kept_apart() -> None:
    class Once(dict):
        passes = 0

        def items(self):
            self.passes += 1
            return super().items()

    made = {"a": torch.ones(2, requires_grad=True), "a.b": torch.ones(3, requires_grad=True)}
    state = State(made, SMALL)
    sum(tensor.square().sum() for tensor in made.values()).backward()
    state.optimiser.step()
    saved = Once({name: tensor.detach().clone() for name, tensor in state.tensors().items()})
    fresh = State({name: torch.zeros_like(tensor).requires_grad_() for name, tensor in made.items()}, SMALL)
    fresh.load(saved, [0.5])
    assert saved.passes == 1 and fresh.losses == [0.5] and fresh.tensors().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in fresh.tensors().items())


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(stop: int, ema: float, tmp_path: Path) -> None:
    config = TrainingConfig(steps=7, rate=0.1, save_every=2, ema=ema, accumulate=2, decay=0.01)
    whole = run(config)
    with pytest.raises(KeyboardInterrupt):
        run(config, stop=stop, place=tmp_path)
    torch.manual_seed(stop)  # chance outside the run is none of its own
    assert equal(run(config, place=tmp_path), whole)
    assert equal(run(config, place=tmp_path), whole)  # a run that is done is only read


def test_what_the_loss_itself_moves_is_saved_and_gone_on_from(tmp_path: Path) -> None:
    def moved(stop: int | None = None, place: Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        trained, extra = leaves(), {"mean": torch.zeros(3), "steps": torch.zeros((), dtype=torch.long)}

        def loss(step: Step) -> torch.Tensor:
            extra["mean"].lerp_(torch.randn(3, generator=step.generator("mean")), 0.1)
            extra["steps"].add_(1)
            return (trained["b"] - extra["mean"]).square().mean()

        def progress(done: int, total: int, what: str) -> None:
            if done == stop:
                raise KeyboardInterrupt

        kept = Checkpoint.at(place, {}) if place else None
        train(trained, loss, SMALL, seed=0, checkpoint=kept, progress=progress, extra=extra)
        return trained["b"].detach(), torch.cat([extra["mean"], extra["steps"][None]])

    whole = moved()
    with pytest.raises(KeyboardInterrupt):
        moved(stop=3, place=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(moved(place=tmp_path), whole, strict=True))


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(place=tmp_path / "run.safetensors")
    before = (tmp_path / "run.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"run.safetensors is the checkpoint of another run \(other rate, seed\)") as e:
        run(TrainingConfig(steps=7, rate=0.2, save_every=2), seed=1, place=tmp_path / "run.safetensors")
    assert "\n" not in str(e.value) and (tmp_path / "run.safetensors").read_bytes() == before
    run(TrainingConfig(steps=7, rate=0.1, save_every=3), place=tmp_path / "run.safetensors")  # decides nothing


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run(place=tmp_path)
    path = tmp_path / FILE
    for data in (path.read_bytes()[:-8], b"", b"{}"):
        path.write_bytes(data)
        with pytest.raises(TrainingError, match="damaged"):
            run(place=tmp_path)
    with pytest.raises(EditError, match="cannot be written"):
        run(place=path / "inside")


def test_a_full_disk_is_one_line_and_the_state_before_stays(tmp_path: Path, monkeypatch) -> None:
    run(place=tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def full(tensors, path, *rest):
        Path(path).write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(EditError, match=r"cannot be written: .*No space left.*; choose another place") as error:
        Checkpoint.at(tmp_path, {}).save(leaves(), [])
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state(what: float, tmp_path: Path) -> None:
    trained, config = leaves(), TrainingConfig(steps=9, rate=0.1, save_every=2)
    good = noisy(trained)
    kept = Checkpoint.at(tmp_path, {})

    def loss(step: Step) -> torch.Tensor:
        return good(step) * (what if step.index == 5 else 1)

    with pytest.raises(DivergenceError, match=r"step 6 of 9: lower the rate \(now 0.1\).*holds the last good state") as e:
        train(trained, loss, config, seed=0, checkpoint=kept, progress=lambda *_: None)
    assert "\n" not in str(e.value)
    tensors, losses = kept.load()
    assert len(losses) == 4 and all(bool(torch.isfinite(t).all()) for t in tensors.values())


def test_a_full_gpu_is_one_line_that_names_the_setting() -> None:
    def full(step: Step) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    with pytest.raises(TrainingError, match=r"recompute=true, lower batch \(now 4\)"):
        train(leaves(), full, TrainingConfig(batch=4), seed=0, progress=lambda *_: None)


def test_chance_comes_from_seed_and_step_alone() -> None:
    draw = lambda *names: torch.randn(4, generator=generator(*names))  # noqa: E731
    first = torch.randn(4, generator=Step(1, 2).generator("x"))
    state = torch.get_rng_state()
    assert torch.equal(first, torch.randn(4, generator=Step(1, 2).generator("x")))
    others = [Step(1, 3).generator("x"), Step(2, 2).generator("x"), Step(1, 2, 1).generator("x"), Step(1, 2).generator("y")]
    assert not any(torch.equal(first, torch.randn(4, generator=other)) for other in others)
    assert torch.equal(draw("a", 1), draw("a", 1)) and torch.equal(torch.get_rng_state(), state)


def test_progress_says_how_the_loss_goes_and_what_is_left() -> None:
    trained, said = leaves(), []
    train(trained, noisy(trained), SMALL, seed=0, progress=lambda *args: said.append(args))
    assert [args[:2] for args in said] == [(i, 7) for i in range(1, 8)]
    assert said[-1][2].startswith("training: loss ") and said[-1][2].endswith(", 0 s left")


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch": 0}, {"rate": 0}, {"rate": math.nan}, {"ema": 1}, {"clip": -1},
                                     {"precision": "float8"}, {"accumulate": 0}])  # fmt: skip
def test_settings_out_of_range_are_named(options: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        TrainingConfig(**options)
