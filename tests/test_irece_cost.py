"""The script that measures IRECE, on a tiny pipeline with a judge that sees brightness."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import edits
import pytest

import erasekit
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.evaluation.judges import Judgement

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import irece_cost
import irece_page


class Sees:
    """A judge that finds everything."""

    name, weights_sha256, licence, labels = "sees", "", "", ("cat", "dog", "fox")

    def judge(self, images, prompts):
        return [Judgement("ok", {"scores": {"cat": float(m)}, "found": ["cat", "dog"]}) for m in images.mean((1, 2, 3))]


def options(*words: str):
    return irece_cost.options(["--images", "2", "--steps", "2", "--rounds", "1", "--batch", "2", "--controls", "dog", "fox",
                               "--at", "0.5", "--tau", "0.3", "0.4", "--rho", "0.75", *words])  # fmt: skip


def test_settings_vary_one_at_a_time_or_all() -> None:
    default = irece_cost.settings(irece_cost.options([]))
    assert len(default) == 7 and default[0] == irece_cost.Setting(0.4, 0.45, 0.75)
    assert len(irece_cost.settings(irece_cost.options(["--full"]))) == 27
    few = options()
    assert len(irece_cost.settings(few)) == 2
    # 2 pictures of 2 guided steps, 2 inverted (2 rounds) and made again; then twice 2 pictures of each kind, a pass more each
    assert irece_cost.passes(few, 2) == 8 + 8 + 4 + 2 * (8 + 4 + 4)
    with pytest.raises(SystemExit):
        irece_cost.options(["--variant", "new"])


def test_results_of_before_pictures_had_a_score_are_printed() -> None:
    rate = {"hits": 1, "of": 2, "low": 0.1, "high": 0.9}
    found = {"seconds": 1.0, "difference": 0.5} | dict.fromkeys(("changed", "right", "target"), rate)
    line = "| off | 1.000 | 0.5000 | 1/2 (10%–90%) | - | 1/2 (10%–90%) | 1/2 (10%–90%) |"
    assert irece_page.table([("off", found)]).splitlines()[-1] == line


def test_a_sweep_measures_time_pictures_and_returns(sd1, capsys, tmp_path, monkeypatch) -> None:
    args = options("--gate", "off", "--out", str(tmp_path / "cost.json"))
    kept, real = [], irece_cost.keep
    monkeypatch.setattr(irece_cost, "keep", lambda rows, args: kept.append(len(rows)) or real(rows, args))
    victim = Victim(sd1, edits.edit(sd1), Sight(Sees(), "cat"), Sampling(2, 3.0, 2))
    op = erasekit.erase(sd1, "cat", method="irece", at=(0.25, 0.5), gate="off", samples=2, sampling_steps=4).ops[0]
    rows = irece_cost.sweep(victim, op, args)
    assert [name for name, _ in rows] == ["undefended", "t* 0.5, tau 0.4, rho 0.75", "t* 0.5, tau 0.3, rho 0.75"]
    plain, *rest = [found for _, found in rows]
    assert kept == [1, 2, 3] and json.loads(args.out.read_text())["rows"] == dict(rows)
    assert plain["difference"] == 0 and plain["changed"]["hits"] == 0 and plain["seconds"] > 0
    assert all(found["difference"] > 0 and found["changed"]["hits"] == 2 for found in rest)
    assert plain["target"]["hits"] == 2 and plain["right"] == {"hits": 1, "of": 2} | {
        key: plain["right"][key] for key in ("low", "high")
    }
    assert all(found["clip"]["of"] == 2 and 0 <= found["clip"]["mean"] <= 2.5 for _, found in rows)
    page = tmp_path / "irece.md"
    page.write_text((Path(__file__).parents[1] / "docs/irece.md").read_text())
    irece_page.main(["--results", str(args.out), "--page", str(page)])
    assert irece_cost.table(rows) in page.read_text() and "Not measured yet" not in page.read_text()
    assert irece_cost.table(rows).count("\n") == 4 and "2 of 2" in capsys.readouterr().out
    assert "prepare_latents" not in vars(sd1) and "7 settings, 100 passes" in irece_cost.estimate(victim, 100, 7)
