"""IRECE's fit: the gate against its formula by hand, the unedited model whatever is on, one file with another edit."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import edits
import pytest
import torch

import erasekit
from erasekit import cli
from erasekit.backbones import backbone
from erasekit.edit import Edit
from erasekit.errors import EditError, InfeasibleError, UsageError
from erasekit.methods import get, make_config
from erasekit.methods._irece_gate import tokens
from erasekit.training.latents import Schedule, partly_denoised
from erasekit.training.loop import generator
from erasekit.training.maps import maps

QUICK = {"method": "irece", "samples": 3, "sampling_steps": 4, "guidance": 3.0}


def test_the_gate_is_the_mean_and_the_deviation_on_neutral_latents(sd2) -> None:
    edit = erasekit.erase(sd2, ["cat", "fox dog"], retain=["a photo"], at=(0.25, 0.75), margin=0.5, seed=3, **QUICK)
    found = edit.ops[0].weights["thresholds"]
    schedule = Schedule.of(dict(sd2.scheduler.config), 4)

    def predict(latents, timestep, text):
        return sd2.unet(latents, timestep, encoder_hidden_states=text).sample

    def encoded(prompt: str):
        return sd2.text_encoder(sd2.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids)[0]

    neutral: dict[int, list[torch.Tensor]] = {1: [], 3: []}  # the same for every target
    for k, latents in neutral.items():
        for j, prompt in enumerate(["", "a photo", ""]):
            noise = torch.randn(1, 4, 16, 16, generator=generator(3, "irece", "neutral", j))
            with torch.no_grad():
                latents.append(partly_denoised(predict, noise, encoded(prompt), encoded(""), schedule=schedule, k=k,
                                               guidance=3.0))  # fmt: skip
    for i, (target, own) in enumerate((("cat", [1]), ("fox dog", [1, 2]))):
        for point, (k, drawn) in enumerate(neutral.items()):
            masses = []
            for latents in drawn:
                with torch.no_grad(), maps(sd2.unet) as seen:
                    predict(latents, schedule.timesteps[k], encoded(target))
                (layer,) = [layer for name, layer in seen.items() if name.startswith("mid")]
                masses.append(float(layer[0, :, :, own].mean()))
            assert float(found[i, point]) == pytest.approx(mean(masses) + 0.5 * stdev(masses), rel=1e-4)


def test_the_edits_that_are_on_have_no_say(sd1) -> None:
    plain = erasekit.erase(sd1, "cat", margin=0.0, **QUICK)
    with edits.edit(sd1).applied(sd1):
        under = erasekit.erase(sd1, "cat", margin=0.0, **QUICK)
    assert plain.base.fingerprint == under.base.fingerprint
    for name, tensor in plain.ops[0].weights.items():
        assert torch.equal(tensor, under.ops[0].weights[name]), name
    check = plain.self_check
    assert check["gate"][0]["target"] == "cat" and 0 < check["gate"][0]["opened"] == 1 - check["residual"] <= 1
    assert "defends a service" in check["warnings"][0]


def test_a_gate_that_never_opens_is_an_error_and_not_a_file(sd1) -> None:
    with pytest.raises(InfeasibleError, match="lower margin") as error:
        erasekit.erase(sd1, "cat", margin=1e6, **QUICK)
    assert "\n" not in str(error.value)


def test_the_tokens_of_the_target_in_its_sentence(sd1) -> None:
    model = backbone(sd1)
    assert tokens(model, "cat", "cat") == [1] and tokens(model, "a photo of fox dog", "fox dog") == [4, 5]
    with pytest.raises(UsageError, match="does not name the target"):
        erasekit.erase(sd1, "cat", template="a photo", **QUICK)


@pytest.mark.parametrize(("values", "words"), [
    ({"at": "0.4;0.2"}, "at must rise, each point once: 0.2;0.4"), ({"at": ""}, "at takes"), ({"at": "1.5"}, "between 0 and 1"),
    ({"rho": 0}, "rho"), ({"tau": 2}, "tau"), ({"variant": "new"}, "shrink, replace"), ({"gate": "on"}, "calibrated, off"),
    ({"samples": 1}, "samples"), ({"sides": "0"}, "sides"),
])  # fmt: skip
def test_a_wrong_value_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_config(get("irece"), values)


def test_the_command_lays_it_on_an_edit(sd1_folder: Path, sd1, tmp_path: Path) -> None:
    below, out = edits.edit(sd1), tmp_path / "both.safetensors"
    below.save(tmp_path / "below.safetensors")
    words = ["erase", "cat", "--method", "irece", "--model", str(sd1_folder), "--out", str(out), "--set", "gate=off",
             "samples=2", "sampling_steps=2", f"on={tmp_path / 'below.safetensors'}"]  # fmt: skip
    assert cli.main(words) == 0
    both = Edit.load(out)
    assert both.method == "erasepro+irece" and len(both.ops) == len(below.ops) + 1 and both.targets == ("cat",)
    with both.applied(sd1):
        pass
    with pytest.raises(EditError, match="guidance op 'irece'"):
        erasekit.erase(sd1, "cat", on=str(out), **QUICK)
