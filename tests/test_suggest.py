"""What is suggested, against the real ErasePro fit applied to random pipelines wide enough to hold every column."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path

import pytest
import tiny
import torch

from erasekit import suggest
from erasekit.backbones.sd import SDBackbone
from erasekit.cli import suggest as command
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import ModelError, UsageError
from erasekit.methods.erasepro import ErasePro, EraseProConfig
from erasekit.suggest.predict import TEMPLATES, predict, similarities, similarity

OTHERS = ["dog", "fox", "photo", "style", "and", "cat fox", "cat and dog", "fox cat", "a cat", "the", "q", "in z"]


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pipe(request):
    """In float64, of width 128: 77 columns fit, as in every real model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WIDTH", 128)
        made = getattr(tiny, request.param)()
    for name, parameter in made.text_encoder.named_parameters():
        if "layer_norm" not in name:  # larger than the default: attention that is not near uniform
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(len(name) + parameter.numel())
                parameter.data.normal_(std=0.06)
    return made.to(torch.float64)


@pytest.fixture
def backbone(pipe) -> SDBackbone:
    return SDBackbone.from_pipeline(pipe)


def fit(backbone: SDBackbone, target: str, anchor: str) -> Edit:
    return ErasePro().fit(backbone, EraseRequest.build(target, anchor=anchor), EraseProConfig())


@torch.no_grad()
def keys_and_values(pipe, prompts: list[str]) -> torch.Tensor:
    """Every cross-attention key and value of each prompt, in one row: the plain way, through the pipeline's modules."""
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    text = pipe.text_encoder(input_ids=ids).last_hidden_state
    names = ("attn2.to_k", "attn2.to_v")
    found = [m(text) for name, m in pipe.unet.named_modules() if name.endswith(names)]
    return torch.cat([part.flatten(1) for part in found], dim=1)


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def mean_square(edit: Edit, **wanted: object) -> float:
    records = [r for r in edit.self_check["sites"] if all(str(r[k]).startswith(str(v)) for k, v in wanted.items())]
    return math.sqrt(sum(r["relative_update"] ** 2 for r in records) / len(records))


# -- the prediction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "anchor"), [("cat", "dog"), ("cat", ""), ("cat fox", "dog"), ("cat", "photo of a"), ("a cat", "a fox")]
)
def test_update_norms_are_those_of_the_fit(backbone, target: str, anchor: str) -> None:
    found = predict(backbone, target, ["fox in style", anchor], ["photo"])
    edit = fit(backbone, target, anchor)
    assert float(found.text[1]) == pytest.approx(mean_square(edit, group="text", depth=0), rel=1e-6)
    assert float(found.cross[1]) == pytest.approx(mean_square(edit, group="cross"), rel=1e-6)
    assert float(found.cross[0]) != pytest.approx(float(found.cross[1]), rel=1e-3)


def test_the_share_at_layer_0_is_that_of_the_edit(backbone) -> None:
    """leak = what the edit's layer 0 adds to a concept's q, k, v, over what it adds to the target's."""
    found = predict(backbone, "cat", ["dog"], [*OTHERS, "cat"])
    edit = fit(backbone, "cat", "dog")
    sites = {(s.component, s.module): s for s in backbone.sites("text.qkv") if s.depth == 0}
    deltas = [op.delta(backbone.weight(sites[key])) for op in edit.ops if (key := (op.component, op.module)) in sites]
    read = backbone.tower.attention_input(backbone.tower.embed(backbone.tokenize([*OTHERS, "cat"])), 0)
    added = sum((read @ delta.T).square().sum((1, 2)) for delta in deltas).sqrt()
    w = [backbone.weight(site) for site in backbone.sites("cross.kv")]
    text = backbone.encode([*OTHERS, "cat", "dog"])
    size = sum((text @ m.T).square().sum((1, 2)) for m in w).sqrt()[:-1]
    end = sum(((text[-1] - text[-2]) @ m.T).square().sum() for m in w).sqrt()
    assert len(deltas) == 3
    torch.testing.assert_close(found.drift[0] * size / end, added / added[-1], rtol=1e-6, atol=1e-9)


def test_the_target_drifts_by_the_whole_gap(pipe, backbone) -> None:
    before = keys_and_values(pipe, ["cat", "dog"])
    gap = float((before[1] - before[0]).norm() / before[0].norm())
    assert float(predict(backbone, "cat", ["dog"], ["cat"]).drift) == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize(("target", "anchor"), [("cat", "dog"), ("cat", ""), ("cat fox", "dog fox")])
def test_drift_ranks_as_the_applied_edit(pipe, backbone, target: str, anchor: str) -> None:
    """Letters whose embeddings hold more and more of the target's: only then is there something to rank."""
    others = list("bdefghjk")
    table, ids = pipe.text_encoder.get_input_embeddings().weight.data, pipe.tokenizer
    cat, *letters = (ids.convert_tokens_to_ids(word + "</w>") for word in ("cat", *others))
    old = table[letters].clone()
    try:
        table[letters] += torch.linspace(0, 1.5, len(letters))[:, None] * table[cat]
        before = keys_and_values(pipe, others)
        with fit(backbone, target, anchor).applied(pipe):
            after = keys_and_values(pipe, others)
        found = predict(backbone, target, [anchor], others).drift[0]
    finally:
        table[letters] = old
    measured = (after - before).norm(dim=1) / before.norm(dim=1)
    assert spearman(found, measured) > 0.8
    assert 0.5 < float(found.mean() / measured.mean()) < 2


def test_similarity_against_a_plain_loop(backbone) -> None:
    found = similarity(backbone, "cat", OTHERS)
    sums = [0.0] * len(OTHERS)
    for template in TEMPLATES:
        texts = [template.format(name) for name in ["cat", *OTHERS]]
        for step in (1, 0):
            rows = [backbone.encode([t])[0, backbone.tokenize([t]).ends[0] - step] for t in texts]
            centre = torch.stack(rows[1:]).mean(0)
            for i, row in enumerate(rows[1:]):
                sums[i] += float(torch.cosine_similarity(rows[0] - centre, row - centre, dim=0)) / 6
    assert found.tolist() == pytest.approx(sums, abs=1e-6)


def test_the_model_stays_and_the_numbers_repeat(pipe, backbone) -> None:
    before = {k: v.clone() for k, v in pipe.text_encoder.state_dict().items()}
    first, second = (suggest.suggest_anchors(backbone, "cat", OTHERS) for _ in range(2))
    assert first == second
    assert all(torch.equal(v, before[k]) for k, v in pipe.text_encoder.state_dict().items())


def test_features_that_are_not_finite(sd1) -> None:
    sd1.text_encoder.state_dict()["final_layer_norm.weight"].fill_(3e38)  # finite, what it gives is not
    with pytest.raises(ModelError, match="not finite"):
        suggest.suggest_anchors(SDBackbone.from_pipeline(sd1), "cat", OTHERS)


# -- the ranking ---------------------------------------------------------------------------------------------------


def test_more_tokens_rank_below_all_others(backbone) -> None:
    found = suggest.suggest_anchors(backbone, "cat", [*OTHERS, " CAT ", "Dog"])
    names = [a.concept for a in found.anchors]
    assert "cat" not in [n.lower() for n in names] and sorted(n.lower() for n in names) == sorted(OTHERS)
    long = [a.tokens > 1 for a in found.anchors]
    assert long == sorted(long) and any(long)
    assert all(bool(a.warnings) == (a.tokens > 1) for a in found.anchors if a.cosine < suggest.SYNONYM)
    cosines = [a.cosine for a in found.anchors if not a.warnings]
    assert cosines == sorted(cosines, reverse=True)


def test_collateral_is_of_the_others(backbone) -> None:
    found = suggest.suggest_anchors(backbone, "cat", OTHERS)
    drift = predict(backbone, "cat", OTHERS, OTHERS).drift
    anchor = next(a for a in found.anchors if a.concept == "dog")
    near = {a.concept for a in found.anchors if a.cosine >= suggest.SYNONYM}
    row = {n: float(drift[0, i]) for i, n in enumerate(OTHERS) if n != "dog" and n not in near}
    assert anchor.drift == pytest.approx(sum(row.values()) / len(row))
    assert [d.concept for d in anchor.worst] == sorted(row, key=lambda n: -row[n])[:3]


def test_a_synonym_is_neither_anchor_nor_retained(pipe) -> None:
    """A twin of the target in the token table stands for a synonym."""
    table, ids = pipe.text_encoder.get_input_embeddings().weight, pipe.tokenizer
    twin, cat = (ids.convert_tokens_to_ids(word + "</w>") for word in ("photo", "cat"))
    old = table.data[twin].clone()
    try:
        table.data[twin] = table.data[cat] + 0.1 * old
        backbone = SDBackbone.from_pipeline(pipe)
        last = suggest.suggest_anchors(backbone, "cat", OTHERS).anchors[-1]
        kept = suggest.suggest_retain(backbone, "cat", OTHERS, anchor="dog")
    finally:
        table.data[twin] = old
    assert last.concept == "photo" and any("another word" in w for w in last.warnings)
    assert kept.synonyms == ("photo",) and "photo" not in [k.concept for k in kept.concepts]


def test_known_synonyms_are_left_out(backbone) -> None:
    found = suggest.suggest_retain(backbone, "cat", OTHERS, synonyms=("fox", "cat"))
    assert found.left_out == ("fox",) and "fox" not in [k.concept for k in found.concepts]
    drifts = [k.drift for k in found.concepts]
    assert drifts == sorted(drifts, reverse=True) and found.anchor == "" and found.exact_at_most == 0
    assert {k.concept for k in found.concepts[:3]} & {"cat fox", "cat and dog"}, "they hold the target's own token"


@pytest.mark.parametrize(
    ("target", "names", "says"),
    [(" ", OTHERS, "empty"), ("cat", ["dog", "fox", "Cat"], "at least 3"), ("cat", ["dog", "fox", "a " * 80], "77")],
)
def test_bad_requests(backbone, target: str, names: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        suggest.suggest_anchors(backbone, target, names)


def test_an_anchor_that_is_the_target(backbone) -> None:
    with pytest.raises(UsageError, match="own anchor"):
        suggest.suggest_retain(backbone, "cat", OTHERS, anchor="Cat")


# -- the command ---------------------------------------------------------------------------------------------------


def call(*words: object) -> None:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(dest="command"))
    command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("# words\n" + "\n".join(OTHERS) + "\n\ncat\n")
    return path


def test_anchors_printed(sd1_folder: Path, listed: Path, capsys) -> None:
    call("suggest-anchors", "cat", "--model", sd1_folder, "--candidates", listed, "--top", 3)
    text = capsys.readouterr().out
    assert "3 of 12 candidates" in text and "cross update" in text and "--candidates" not in text
    assert f"--model {sd1_folder}" in next(
        line for line in text.splitlines() if line.startswith("try: erasekit erase cat")
    )


def test_anchors_as_json_with_the_common_nouns(sd1_folder: Path, capsys) -> None:
    call("suggest-anchors", "cat", "--model", sd1_folder, "--json")
    found = json.loads(capsys.readouterr().out)
    assert len(found["anchors"]) == 10 and "--candidates FILE" in found["notes"][0]
    assert {"concept", "tokens", "cosine", "update_text", "update_cross", "drift", "worst"} <= set(found["anchors"][0])


def test_the_retain_line_can_be_handed_on(sd1_folder: Path, listed: Path, capsys) -> None:
    words = ("suggest-retain", "cat", "--model", sd1_folder, "--candidates", listed, "--anchor", "dog", "--top", 4)
    call(*words, "--json")
    found = json.loads(capsys.readouterr().out)
    call(*words)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == found["line"] and shlex.split(line) == ["--retain", *(k["concept"] for k in found["concepts"])]
    assert shlex.split(command.retain_line(["cat fox", 'a "$x"'])) == ["--retain", "cat fox", 'a "$x"']


def test_no_anchor_is_proposed_where_all_are_warned_of(sd1_folder: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "long.txt"
    path.write_text("dog and fox\na photo\nin style\n")
    call("suggest-anchors", "cat", "--model", sd1_folder, "--candidates", path)
    text = capsys.readouterr().out
    assert "try:" not in text and "every candidate has a warning" in text and text.count("warning: ") >= 3


def test_the_emoji_world_knows_its_words() -> None:
    from erasekit.suggest.candidates import emoji_candidates, emoji_synonyms

    assert "dog" in emoji_candidates("Kitten") and emoji_synonyms("kitten") == ("cat", "kitten", "feline")
    assert "noto" in emoji_candidates("ink") and emoji_synonyms("ink") == ()
    assert "noto style" in emoji_candidates("Ink style") and "dog" not in emoji_candidates("ink style")
    assert emoji_candidates("blue background")[0] == "white background" and "pink" in emoji_candidates("blue")
    with pytest.raises(UsageError, match="did you mean cat"):
        emoji_candidates("catt")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["zeppelin"], "does not know 'zeppelin'"),
        ([""], "empty"),
        (["cat", "--candidates", "{tmp}/none.txt"], "none.txt"),
        (["cat", "--candidates", "{tmp}"], "one concept a line"),
        (["cat", "--candidates", "{tmp}/binary.txt"], "not UTF-8"),
        (["cat", "--candidates", "{tmp}/few.txt"], "at least 3"),
        (["cat", "--top", "0"], "--top"),
    ],
)
@pytest.mark.parametrize("name", command.NAMES)
def test_bad_input_is_refused_before_a_model_is_read(
    name: str, words: list[str], says: str, tmp_path, monkeypatch
) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00dog\n")
    (tmp_path / "few.txt").write_text("dog\ncat\n")
    monkeypatch.setattr("erasekit.backbones.backbone", lambda *_: pytest.fail("the model was read"))
    with pytest.raises(UsageError, match=says) as caught:
        call(name, *(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert len(str(caught.value).splitlines()) == 1


def test_several_targets_at_once_stand_as_one_by_one(backbone: SDBackbone) -> None:
    table = similarities(backbone, ["cat", "a fox"], OTHERS)
    assert torch.allclose(table, torch.stack([similarity(backbone, name, OTHERS) for name in ("cat", "a fox")]), atol=1e-12)


def test_the_benchmark_tells_how_synonyms_and_concepts_lie(backbone: SDBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import suggest as benchmark

    from erasekit.worlds.emoji.concepts import Concept

    world = (Concept("cat", "", "", ("cat",)), Concept("dog", "", "", ("fox",)), Concept("photo", "", "", ()))
    monkeypatch.setattr(benchmark, "concepts", lambda: world)
    monkeypatch.setattr(benchmark, "names", lambda: tuple(c.name for c in world))
    found = benchmark.threshold(backbone)
    assert found["synonyms"] == 2 and found["above"] in (0.5, 1.0), "a word is its own synonym"
    assert found["nearest"][0] != found["nearest"][1] and found["nearest_cosine"] < 1
