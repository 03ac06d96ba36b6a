"""An SPM goes to another model of its family from the command line, with its gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from PIL import Image, ImageChops

import erasekit
from erasekit import cli


def test_a_sibling_draws_the_target_otherwise_only_with_force(
    sd1, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sibling = tiny.sd1(seed=7)
    sibling.text_encoder.load_state_dict(sd1.text_encoder.state_dict())  # the gate reads the same text encoder
    sibling.save_pretrained(tmp_path / "sibling")
    edit = erasekit.erase(sd1, "cat", method="spm", steps=1, rate=0.3, sampling_steps=2, conditions=1)
    assert edit.ops[0].config["gate"] == "transport"
    edit.save(tmp_path / "spm.safetensors")

    def draw(name: str, *words: str) -> int:
        return cli.main(["generate", "cat", "--model", str(tmp_path / "sibling"), "--steps", "2", "--seeds", "0", *words,
                         "--out", str(tmp_path / name)])  # fmt: skip

    with_edit = ["--edit", str(tmp_path / "spm.safetensors")]
    assert draw("plain") == 0 and draw("refused", *with_edit) == 1
    assert "--force" in capfd.readouterr().err
    assert draw("forced", *with_edit, "--force") == 0
    (plain,), (forced,) = (list((tmp_path / name).glob("*.png")) for name in ("plain", "forced"))
    assert ImageChops.difference(Image.open(plain), Image.open(forced)).getbbox()
