"""ESD of a memorised image: the paper's objective at the image's own noised latents; on tiny random models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import pytest
import tiny
import torch
from PIL import Image
from test_esd import fit, opened, same

import erasekit
from erasekit.backbones import backbone
from erasekit.errors import TrainingError, UsageError
from erasekit.methods._cross import silent
from erasekit.methods._esd_images import memorised, owners
from erasekit.methods.esd import loss
from erasekit.training.loop import Step
from erasekit.training.parameters import select

CAPTION = "a photo of the cat"


def picture(folder: Path, name: str = "a", *, caption: str | None = None, seed: int = 0) -> Path:
    """A picture of the tiny model's own size, so that nothing is cropped or resized."""
    folder.mkdir(exist_ok=True)
    pixels = numpy.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption)
    return folder


def clean(pipe, file: Path) -> torch.Tensor:
    """The latents of a picture file as the plain autoencoder gives them."""
    pixels = torch.tensor(numpy.array(Image.open(file)), dtype=torch.float32) / 127.5 - 1
    with torch.no_grad():
        return pipe.vae.encode(pixels.permute(2, 0, 1)[None]).latent_dist.mean * pipe.vae.config.scaling_factor


def predict(pipe, latents: torch.Tensor, timestep: int, prompt: str) -> torch.Tensor:
    """One forward pass for each sample."""
    text = backbone(pipe).encode([prompt])
    with torch.no_grad():
        return torch.cat([pipe.unet(z[None], timestep, encoder_hidden_states=text).sample for z in latents])


def state(pipe) -> dict[str, str]:
    """A digest of every tensor, and the switches of every parameter and module."""
    found: dict[str, str] = {}
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, part)
        found |= {f"{part}.{k}": hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest()
                  for k, v in module.state_dict().items()}  # fmt: skip
        found |= {f"{part}.{k} flag": f"{p.requires_grad} {p.grad} {id(p)}" for k, p in module.named_parameters()}
        found |= {f"{part}.{k} mode": f"{m.training}" for k, m in module.named_modules()}
    return found


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_loss_is_the_papers_at_the_noised_image(family: str, request, tmp_path: Path) -> None:
    """Against the plain autoencoder, the scheduler's own levels and single forward passes, where the student has moved."""
    pipe, folder = request.getfixturevalue(family), picture(tmp_path / "images")
    bench, config = opened(pipe, CAPTION, folder=str(folder), eta=2.0, batch=2)
    step, levels = Step(0, 0), pipe.scheduler.alphas_cumprod
    with bench as tools:
        memory = memorised(tools, config.folder, silent)
        with torch.no_grad():
            for tensor in tools.student.trained.values():
                tensor.mul_(1.1)
        value, draw = float(loss(tools, config, step, memory).detach()), step.generator("level")
        torch.randint(1, (), generator=draw)  # the target
        t = int(torch.randint(1000, (), generator=draw))
        noise = torch.randn(2, 4, 16, 16, generator=step.generator("noise"))
        latents = levels[t].sqrt() * clean(pipe, folder / "a.png") + (1 - levels[t]).sqrt() * noise
        with tools.student.active():
            found = predict(pipe, latents, t, CAPTION)
    own, empty = (predict(pipe, latents, t, prompt) for prompt in (CAPTION, ""))
    wanted = empty - 2 * (own - empty)
    assert value == pytest.approx(float((found - wanted).square().mean()), rel=1e-3)


def test_latents_are_of_exactly_the_level_of_a_timestep_drawn_from_all(sd1, tmp_path: Path) -> None:
    folder, levels = picture(picture(tmp_path / "images"), "b", seed=1), sd1.scheduler.alphas_cumprod.double()
    images, times, seen = [clean(sd1, folder / f"{name}.png")[0] for name in "ab"], [], set()
    bench, config = opened(sd1, CAPTION, folder=str(folder), batch=3)
    with bench as tools:
        memory = memorised(tools, config.folder, silent)
        for i in range(60):
            noise, draw = tools.noise(Step(0, i).generator("noise")), Step(0, i).generator("level")
            latents, t = memory.drawn(tools, 0, noise, draw)
            for z, eps in zip(latents, noise, strict=True):
                gaps = [float((z - levels[t].sqrt() * x - (1 - levels[t]).sqrt() * eps).abs().max()) for x in images]
                assert min(gaps) < 1e-4 < max(gaps)  # one of the two images, and surely which
                seen.add(gaps.index(min(gaps)))
            times.append(t)
    assert seen == {0, 1} and min(times) < 100 and max(times) > 900 and 380 < sum(times) / 60 < 620


def test_nothing_is_asked_at_the_start_with_strength_zero_of_the_later_code(sd1, tmp_path: Path) -> None:
    bench, config = opened(sd1, CAPTION, folder=str(picture(tmp_path / "images")), eta=-1, batch=2)
    with bench as tools:
        value = loss(tools, config, Step(0, 0), memorised(tools, config.folder, silent))
        gradients = torch.autograd.grad(value, list(tools.student.trained.values()), allow_unused=True)
    assert float(value.detach()) < 1e-12
    assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-7


def test_the_trained_model_guides_away_from_the_caption_at_the_image(sd1, tmp_path: Path) -> None:
    folder, before = picture(tmp_path / "images"), state(sd1)
    level = sd1.scheduler.alphas_cumprod[500]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(9))
    latents = level.sqrt() * clean(sd1, folder / "a.png") + (1 - level).sqrt() * noise
    empty, own = (predict(sd1, latents, 500, prompt) for prompt in ("", CAPTION))
    edit = fit(sd1, CAPTION, steps=20, batch=2, folder=str(folder), retain=("dog",))
    assert state(sd1) == before and edit.parameters["folder"] == "images"  # and not where it lies
    assert {f"{op.module}.{'weight' if key == 'delta' else key}" for op in edit.ops for key in op.tensors()} == set(
        select(sd1.unet, "cross"))  # fmt: skip
    with edit.applied(sd1):
        moved = predict(sd1, latents, 500, CAPTION)
    assert float(torch.nn.functional.cosine_similarity((moved - empty).flatten(), (own - empty).flatten(), dim=0)) < 0
    assert edit.self_check["residual"] < 0.9 and edit.self_check["retained_drift"] > 0


def test_a_killed_run_goes_on_to_the_same_edit_and_another_image_is_another_run(sd1, tmp_path: Path) -> None:
    folder = picture(tmp_path / "images")
    options = {"steps": 4, "save_every": 2, "folder": str(folder)}

    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("training") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(sd1, CAPTION, **options, checkpoint=tmp_path, progress=kill)
    resumed, whole = fit(sd1, CAPTION, **options, checkpoint=tmp_path), fit(sd1, CAPTION, **options)
    assert same(resumed, whole) and resumed.self_check == whole.self_check
    assert not same(whole, fit(sd1, CAPTION, **(options | {"folder": ""})))
    sibling = tiny.sd1()
    sibling.vae = tiny.sd1(seed=7).vae  # its latents of the image are others
    with pytest.raises(TrainingError, match=r"another run \(other data\)"):
        fit(sibling, CAPTION, **options, checkpoint=tmp_path)
    assert same(fit(tiny.sd1(), CAPTION, **options, checkpoint=tmp_path), whole)
    picture(folder, seed=1)
    with pytest.raises(TrainingError, match=r"another run \(other data\)"):
        fit(sd1, CAPTION, **options, checkpoint=tmp_path)


def test_each_target_has_the_images_of_its_caption_and_those_without_one(sd1, tmp_path: Path) -> None:
    folder = picture(picture(tmp_path / "images", caption="The  Cat\n"), "b", caption="a fox", seed=1)
    bench, config = opened(sd1, ["a fox", "the cat"], folder=str(picture(folder, "c", seed=2)))
    with bench as tools:
        memory = memorised(tools, config.folder, silent)
        assert memory.rows == ((1, 2), (0, 2)) and memory.latents.shape == (3, 4, 16, 16)
        torch.testing.assert_close(memory.latents[1:2], clean(sd1, folder / "b.png"))
    assert owners(["x"], [None, None], "f") == ((0, 1),)


def test_what_is_asked_in_a_wrong_way_is_one_clear_line(sd1, tmp_path: Path) -> None:
    before, empty, damaged = state(sd1), tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    other = picture(tmp_path / "other", caption="a fox")
    (picture(damaged) / "a.png").write_bytes(b"no image")
    for targets, folder, named in [("cat", tmp_path / "none", "cannot be read"), ("cat", empty, "holds no image"),
                                   ("cat", damaged, "it is damaged"), ("cat", other, "'a fox' in .* is no target"),
                                   (["cat", "a fox"], other, "no image of 'cat'")]:  # fmt: skip
        for run in (erasekit.erase, erasekit.plan):
            with pytest.raises(UsageError, match=named) as error:
                run(sd1, targets, method="esd", sampling_steps=3, steps=2, folder=str(folder))
            assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="host and folder exclude each other"):
        fit(sd1, folder=str(other), host="dog")
    assert state(sd1) == before


def test_the_plan_has_no_sampling_in_it(sd1, tmp_path: Path) -> None:
    options = {"method": "esd", "sampling_steps": 400, "steps": 10}
    with_images = erasekit.plan(sd1, CAPTION, folder=str(picture(tmp_path / "images")), **options)
    assert 10 * with_images.seconds < erasekit.plan(sd1, CAPTION, **options).seconds
