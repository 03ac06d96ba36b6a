"""Anchor images: drawn latents against a plain loop, folders, and augmentation with its masks; on tiny random models."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.errors import ModelError, TrainingError, UsageError
from erasekit.training import images
from erasekit.training.bench import opened
from erasekit.training.loop import generator
from erasekit.training.parameters import weights
from erasekit.training.settings import TrainingConfig


def bench(pipe, *, batch: int = 2, seed: int = 0):
    request = EraseRequest.build("cat", anchor="dog", seed=seed)
    return opened(backbone(pipe), request, TrainingConfig(batch=batch), student=weights("cross.kv"), prompts=[],
                  sampling_steps=3)  # fmt: skip


def drawn(pipe, wanted, *, guidance: float = 6.0, **options) -> torch.Tensor:
    with bench(pipe, **options) as tools:
        return images.drawn(tools, tools.backbone.encode, dict(enumerate(wanted)), guidance=guidance, progress=lambda *_: None)


def picture(path: Path, size: tuple[int, int] = (40, 30), colour: tuple[int, int, int] = (255, 0, 0)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_drawn_images_are_those_of_a_plain_sampler(family: str, request) -> None:
    """DDIM one image and one guidance branch at a time, on the pipeline's own scheduler."""
    pipe = request.getfixturevalue(family)
    wanted = [("a dog", ""), ("a fox", "cat"), ("dog", "")]
    found = drawn(pipe, wanted)
    pipe.scheduler.set_timesteps(3)
    model = backbone(pipe)
    for i, (caption, negative) in enumerate(wanted):
        latents = torch.randn(1, 4, 16, 16, generator=generator(0, "image", i))
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                with_, without = (pipe.unet(latents, t, encoder_hidden_states=model.encode([p])).sample
                                  for p in (caption, negative))  # fmt: skip
            step = pipe.scheduler.step(without + 6 * (with_ - without), t, latents)
            latents = step.prev_sample
        torch.testing.assert_close(found[i : i + 1], step.pred_original_sample, rtol=1e-3, atol=1e-3)


def test_an_image_depends_on_the_seed_and_its_number_and_not_on_the_batch(sd1) -> None:
    wanted = [("dog", "")] * 3
    first = drawn(sd1, wanted)
    assert torch.equal(first, drawn(sd1, wanted)) and not torch.equal(first[0], first[1])
    torch.testing.assert_close(first, drawn(sd1, wanted, batch=3), rtol=1e-4, atol=1e-4)
    assert not torch.equal(first, drawn(sd1, wanted, seed=1))


def test_drawing_goes_on_from_whole_batches_to_the_same_bits_and_says_how_long_it_takes(sd1) -> None:
    wanted, kept, said = dict.fromkeys(range(5), ("dog", "")), [], []
    with bench(sd1) as tools:
        def draw(**more) -> torch.Tensor:
            return images.drawn(tools, tools.backbone.encode, wanted, guidance=6.0,
                                progress=lambda *report: said.append(report), **more)  # fmt: skip

        whole = draw(keep=lambda found: kept.append(torch.cat(list(found))))
        assert [len(part) for part in kept] == [2, 4] and [report[:2] for report in said] == [(2, 5), (4, 5), (5, 5)]
        assert all(report[2].startswith("drawing anchor images: ") and report[2].endswith(" s left") for report in said)
        said.clear()
        assert torch.equal(draw(known=kept[0] + 0), whole) and said[0][:2] == (4, 5)
        assert torch.equal(draw(known=kept[0] * 0)[2:], whole[2:])  # what is known is not drawn again


# -- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_with_its_captions(sd1, tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.jpg", colour=(0, 0, 255))
    (tmp_path / "a.txt").write_text(" a  dog\nin the style \n")
    (tmp_path / "notes.md").write_text("no image")
    found = images.pictures(tmp_path)
    assert [path.name for path in found] == ["a.jpg", "b.png"]
    assert [images.beside(path) for path in found] == ["a dog in the style", None]
    vae = backbone(sd1).autoencoder()
    assert vae is sd1.vae and images.scale_of(vae) == 2
    latents = images.read_folder(vae, found, (16, 16), lambda *_: None)
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, 32, 32)
    with torch.no_grad():
        own = vae.encode(red).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape == (2, 4, 16, 16)
    torch.testing.assert_close(latents[1:], own)
    before = images.digest(found)
    picture(tmp_path / "b.png", colour=(1, 2, 3))
    assert images.digest(found) != before


def test_pictures_are_cropped_from_the_centre(tmp_path: Path) -> None:
    wide = numpy.zeros((8, 24, 3), dtype=numpy.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = images.pixels(tmp_path / "wide.png", (8, 8))
    assert torch.equal(found, torch.ones(3, 8, 8))


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    """A camera held sideways writes so: the left of what is stored is the top."""
    exif, stored = Image.Exif(), Image.new("RGB", (16, 8))
    exif[0x0112] = 6
    stored.paste((255, 255, 255), (0, 0, 8, 8))
    stored.save(tmp_path / "x.png", exif=exif)
    found = images.pixels(tmp_path / "x.png", (16, 8))
    assert bool((found[:, :8] == 1).all()) and bool((found[:, 8:] == -1).all())


def test_latents_come_back_as_pixels_in_range(sd1) -> None:
    latents = torch.randn(2, 4, 8, 8)
    found = images.decoded(sd1.vae, latents)
    with torch.no_grad():
        own = sd1.vae.decode(latents / sd1.vae.config.scaling_factor).sample.clamp(-1, 1)
    assert torch.equal(found, own) and found.shape == (2, 3, 16, 16)


def test_what_cannot_be_read_is_one_clear_line(sd1_folder: Path, tmp_path: Path) -> None:
    def refused(action, named: str, error: type[Exception] = UsageError) -> None:
        with pytest.raises(error, match=named) as caught:
            action()
        assert "\n" not in str(caught.value)

    refused(lambda: images.pictures(tmp_path), "holds no image")
    refused(lambda: images.pictures(tmp_path / "none"), "cannot be read")
    refused(lambda: images.pictures(picture(tmp_path / "c.png")), "cannot be read")
    (tmp_path / "d.png").write_bytes(b"no image at all")
    refused(lambda: images.pixels(tmp_path / "d.png", (8, 8)), "d.png cannot be read: it is damaged")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:50])
    refused(lambda: images.pixels(tmp_path / "c.png", (8, 8)), "c.png cannot be read")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    refused(lambda: images.beside(tmp_path / "c.png"), "UTF-8")
    import shutil

    shutil.copytree(sd1_folder, tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    refused(backbone(tmp_path / "model").autoencoder, "cannot load the vae", ModelError)


def test_parts_of_a_folder_are_read_once_and_are_the_pipelines(sd1, sd1_folder: Path) -> None:
    lazy = backbone(sd1_folder)
    for part, own in ((lazy.autoencoder, sd1.vae), (lazy.text_encoder, sd1.text_encoder)):
        found = part()
        assert part() is found and not found.training
        assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), own.state_dict().values(), strict=True))


# -- augmentation -------------------------------------------------------------------------------------------------


def test_augmentation_is_the_papers(sd1) -> None:
    """Frequencies and ranges over many draws; every masked latent lies inside the picture, one latent from its edge."""
    factor, size = 4, 48
    image = torch.full((3, size, size), 0.5)
    image[0, :, : size // 2] = 1.0  # red on the left, so that a mirror shows
    shrunk, mirrored, count = 0, 0, 300
    for i in range(count):
        found = images.augmented(image, factor, generator("draw", i))
        assert found.image.shape == image.shape and found.mask.shape == (1, size // factor, size // factor)
        shrunk += found.scale <= 1
        inside = found.image[1].abs() > 1e-6
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        left = found.image[0, rows[0], columns[0]] > found.image[0, rows[0], columns[-1]]
        mirrored += not left
        if found.scale > 1:
            assert 1.2 <= found.scale <= 1.4 and bool((found.mask == 1).all()) and bool(inside.all())
            continue
        assert 1 / 3 <= found.scale <= 1 and len(rows) == len(columns) == round(size * found.scale)
        full = found.mask[0].repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        assert bool(inside[full > 0].all()) and float(full.sum()) > 0
        on = found.mask[0].any(1).nonzero()[:, 0]  # one whole latent lies between the mask and either edge
        assert on[0] * factor - rows[0] > 0 and rows[-1] + 1 - (on[-1] + 1) * factor >= factor
        assert not bool(found.image[:, ~inside].abs().max() > 0) if not bool(inside.all()) else True
    assert abs(shrunk / count - 2 / 3) < 0.1 and abs(mirrored / count - 0.5) < 0.1


def test_augmentation_depends_on_its_generator_alone() -> None:
    image = torch.rand(3, 24, 24)
    one, other = (images.augmented(image, 2, generator("a")) for _ in range(2))
    assert torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)


def test_a_picture_that_fills_the_gpu_is_one_line(sd1, tmp_path: Path, monkeypatch) -> None:
    def full(*args) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(images, "encoded", full)
    with pytest.raises(TrainingError, match=r"memory is full: run on the CPU with --device cpu \(begins anew\), or free"):
        images.read_folder(sd1.vae, [picture(tmp_path / "a.png")], (8, 8), lambda *_: None)
