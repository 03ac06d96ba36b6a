"""Sampling loops that are not the pipeline's, with IRECE on: disturbed as the pipeline is, where the edited model draws."""

from __future__ import annotations

from pathlib import Path

import edits
import pytest
import torch
from test_m_erasurebench import bench, files
from test_probes import CASES, ddim, victim

from erasekit.attacks._ddim import sampled, starts, texts
from erasekit.attacks.latent_inversion import LatentInversionConfig, again
from erasekit.attacks.probes_completion import CompletionConfig, completed
from erasekit.attacks.probes_inpainting import inpainted
from erasekit.attacks.probes_noise import Try, drawn
from erasekit.attacks.victim import Victim
from erasekit.edit import Base, Edit, Guidance
from erasekit.guidances.sampler import Moment, announced, watch

NOTHING = ({"rho": 0.0}, {"tau": 1.0}, {"tau": 1.0, "variant": "replace"})
"""No strength, an empty mask."""
EVERYWHERE = {"tau": -1.0, "rho": 1.0}


def irece(pipe, family: str = "sd1", **config) -> Edit:
    """An edit that disturbs everywhere at the second half of the way, without a gate."""
    ids = pipe.tokenizer(["cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        features = pipe.text_encoder(ids)[0]
    known = {"targets": ["cat"], "tokens": [[1]], "at": [0.5], "sides": [4], "dilate": 1, "variant": "shrink", "gate": "off",
             "seed": 0} | EVERYWHERE | config  # fmt: skip
    weights = {"features": features, "thresholds": torch.full((1, len(known["at"])), -1.0)}
    return Edit(
        (Guidance("irece", weights, known),), Base("tiny", family, {}), "irece", targets=("cat",), anchors=("",)
    )


@torch.no_grad()
def looped(model: Victim, prompts: list[str], steps: int = 4, *, announce: bool = True) -> torch.Tensor:
    """Clean latents by the attacks' own loop."""
    noise, _ = starts(model, list(range(len(prompts))))
    schedule = model.schedule(steps)
    told = model.announced(noise, schedule) if announce else None
    return sampled(model.denoiser(), noise, texts(model, prompts, 3.0), schedule=schedule, announce=told)


# -- the same as in the pipeline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_loop_that_announces_is_disturbed_as_the_pipeline(family: str, request) -> None:
    """The same steps, levels and noise: the latents are the pipeline's."""
    pipe, prompts = ddim(request.getfixturevalue(family)), ["a cat", "a dog"]
    both = edits.edit(pipe, family=family) + irece(pipe, family, at=[0.0, 0.5], rho=0.8)
    with victim(pipe, both) as model:
        draws = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        with torch.no_grad(), model.guided(3.0):
            wanted = pipe(
                prompts, num_inference_steps=4, guidance_scale=3.0, generator=draws, output_type="latent"
            ).images
        found, plain = looped(model, prompts), looped(model, prompts, announce=False)
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-2)
    assert float((plain - wanted).norm() / wanted.norm()) > 0.1


def test_the_moments_are_the_pipelines(sd1) -> None:
    seen: list[tuple[Moment, torch.Tensor]] = []

    def change(latents: torch.Tensor, moment: Moment) -> torch.Tensor:
        seen.append((moment, latents))
        return latents

    with victim(sd1) as model:
        remove = watch(sd1, change)
        looped(model, ["a cat", "a dog"])
        with torch.no_grad():
            sd1(["a cat", "a dog"], num_inference_steps=4, guidance_scale=3.0, output_type="latent",
                generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)])  # fmt: skip
        remove()
    assert len(seen) == 8
    for (one, a), (other, b) in zip(seen[:4], seen[4:], strict=True):
        assert (one.index, one.count, one.rows, one.prediction) == (
            other.index, other.count, other.rows, other.prediction)  # fmt: skip
        assert int(one.timestep) == int(other.timestep) and one.scale == other.scale == 1 and not one.ignored
        assert one.level == pytest.approx(other.level, rel=1e-6)
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_without_strength_or_mask_or_anything_on_not_a_bit_changes(sd1) -> None:
    prompts = ["a cat", "a dog"]
    with victim(sd1) as model:
        plain = looped(model, prompts, announce=False)
        assert torch.equal(looped(model, prompts), plain)
        latents = torch.ones(2, 4, 16, 16)
        assert announced(sd1, latents, model.schedule(4))(latents, 3) is latents
    for options in NOTHING:
        with victim(sd1, irece(sd1, at=[0.0, 0.5], **options)) as model:
            assert torch.equal(looped(model, prompts), plain), options
    with victim(sd1, irece(sd1)) as model:
        assert not torch.equal(looped(model, prompts), plain)
        with model.original():
            assert model.announced(latents, model.schedule(4)) is None
            assert torch.equal(looped(model, prompts), plain)
            remove = watch(sd1, lambda found, moment: found + 1)  # not even what somebody else put there
            assert torch.equal(looped(model, prompts), plain)
            remove()
    assert "prepare_latents" not in vars(sd1) and "step" not in vars(sd1.scheduler)


# -- what samples so --------------------------------------------------------------------------------------------------


def test_inversion_is_undisturbed_and_the_way_back_is_not(sd1) -> None:
    clean = 0.7 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))[:1]
    for side in ("edited", "original"):
        config = LatentInversionConfig(steps=2, rounds=1, side=side)
        below = edits.edit(sd1)
        tried = {"none": below, "off": below + irece(sd1, rho=0.0), "on": below + irece(sd1)}
        found = {}
        for name, edit in tried.items():
            with victim(sd1, edit) as model:
                found[name] = again(model, CASES[:1], clean, config)
                with model.original():
                    found[f"{name} unedited"] = again(model, CASES[:1], clean, config)
        assert torch.equal(found["none"][0].tensors["latents"], found["on"][0].tensors["latents"])
        pictures = {name: one.image.tobytes() for name, (one,) in found.items()}
        assert pictures["off"] == pictures["none"] != pictures["on"]
        assert pictures["none unedited"] == pictures["off unedited"] == pictures["on unedited"]


def test_probes_are_disturbed_where_the_edited_model_draws(sd1) -> None:
    cases = CASES[:2]
    clean = 0.7 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[4:12, 4:12] = True

    def all_of(edit: Edit | None) -> dict[str, torch.Tensor | list[bytes]]:
        with torch.no_grad(), victim(sd1, edit) as model:
            jobs = [(case, Try(0, 1.2)) for case in cases]
            return {"completion": completed(model, cases, CompletionConfig(k=1, steps=2)),
                    "inpainting": inpainted(model, cases, clean, hole, 2),
                    "noise": [image.tobytes() for image in drawn(model, jobs, 2)]}  # fmt: skip

    def same(a, b) -> dict[str, bool]:
        return {key: torch.equal(a[key], b[key]) if key != "noise" else a[key] == b[key] for key in a}

    plain = all_of(None)
    assert set(same(all_of(irece(sd1, rho=0.0)), plain).values()) == {True}
    on = all_of(irece(sd1))
    assert set(same(on, plain).values()) == {False}
    assert torch.equal(on["inpainting"][..., ~hole], clean[..., ~hole]), "what is pasted stands, bit for bit"
    early = same(all_of(irece(sd1, at=[0.0])), plain)
    assert early == {"completion": True, "inpainting": False, "noise": False}, "step 0 is not the edited model's"


@pytest.mark.slow
def test_the_white_box_latents_meet_the_defence(sd1, tmp_path: Path) -> None:
    below = edits.edit(sd1)
    defended = below + irece(sd1)
    plain = bench(sd1, tmp_path / "plain", below, only=["L-wb"])
    found = bench(sd1, tmp_path / "defended", defended, only=["L-wb"])
    assert [row["crr"]["of"] + row["crr"]["invalid"] for row in found["rows"]] == [2, 2, 2]
    for row, bare in zip(found["rows"], plain["rows"], strict=True):  # a pass of the defence for each of the two pictures
        assert row["spent"] == bare["spent"] | {"passes": bare["spent"]["passes"] + 2}
    one, other = files(tmp_path / "plain"), files(tmp_path / "defended")
    assert one.keys() == other.keys()
    drawn_by_edited = ("L-wb", "scrambled")
    for name in one:
        if name.endswith(".png"):
            assert (one[name] != other[name]) == name.startswith(drawn_by_edited), name
