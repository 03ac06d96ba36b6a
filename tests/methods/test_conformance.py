"""What every method owes, on every family that it claims: one matrix, so that a new method is held to it at once."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import tiny
import torch

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit, LinearOp
from erasekit.errors import BaseMismatchError, EditError, ModelError, UsageError
from erasekit.export import save_folder
from erasekit.methods import METHODS, describe_config, get, make_config, resolve, trains

CHECKS = {"modules", "residual", "residual_before_cast", "relative_update", "retained_drift", "sites", "warnings"}
QUICK: dict[str, dict[str, object]] = {
    "esd": {"steps": 3, "rate": 1e-3, "sampling_steps": 2},
    "ac": {"steps": 3, "rate": 2e-3, "sampling_steps": 2, "images": 4, "batch": 2, "augment": False},
    "spm": {"steps": 3, "rate": 1e-2, "sampling_steps": 2, "anchoring": 1.0, "resolution": "dynamic"},
    "mace": {"steps": 2, "rate": 2e-2, "count": 2, "sampling_steps": 2},
    "receler": {"steps": 3, "rate": 1e-2, "sampling_steps": 2, "attack_steps": 2, "attack_rows": 4, "rank": 16},
}
"""Short runs for methods that train. A few steps of training are held to all of the matrix but two things: no single site
has a residual (what was asked is the denoiser's output, measured as a whole), and an anchor is not reached (ESD does not
even aim at it: `test_esd` has what it aims at). Trained modules may have biases."""
ALONE = {"esd", "ac", "spm", "receler"}
"""Methods whose few steps do not suffice for two concepts. That their lists too give the same edit twice is in the tests of
each, where a killed run goes on."""
SAMPLING: dict[str, dict[str, object]] = {"irece": {"gate": "off", "samples": 2, "sampling_steps": 2}}
"""Methods that change no weight and train nothing, but act while a pipeline samples: they have no sites, and no anchor that
is reached. The tiny models attend to everything alike, so the gate is off."""
MATRIX = [(name, family) for name in METHODS for family in get(name).families]
every_method = pytest.mark.parametrize("name", METHODS)
closed_pairs = pytest.mark.parametrize(("name", "family"), [pair for pair in MATRIX if pair[0] not in QUICK | SAMPLING])
every_pair = pytest.mark.parametrize(("name", "family"), MATRIX)


def fit(
    name: str, model: object, *, targets: object = "cat", anchor: object = "dog", seed: int = 0, options=None, **rest
) -> Edit:
    method = get(name)
    request = EraseRequest.build(targets, anchor=anchor, seed=seed, default_anchor=method.default_anchor, **rest)
    return method().fit(backbone(model), request, make_config(method, (QUICK | SAMPLING).get(name, {}) | (options or {})))


@functools.cache
def fitted(name: str, family: str) -> Edit:
    """The edit of a pipeline like the fixture's, fitted once: an edit is never changed, and a fit leaves no trace."""
    return fit(name, getattr(tiny, family)())


def asked(name: str) -> dict[str, object]:
    """Two concepts, a third retained; one concept of a method in `ALONE`."""
    return {"targets": ["cat"] if name in ALONE else ["cat", "fox"], "retain": ("photo",), "seed": 3}


@functools.cache
def traced(name: str, family: str) -> tuple[Edit, dict[str, str], dict[str, str]]:
    """What `asked` gives, with the state of its pipeline before and after the fit."""
    pipe = getattr(tiny, family)()
    before = state(pipe)
    torch.manual_seed(1)
    return fit(name, pipe, **asked(name)), before, state(pipe)


def state(pipe) -> dict[str, str]:
    """A digest of every tensor of the pipeline, buffers included."""
    return {
        f"{part}.{key}": hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        for part in ("text_encoder", "unet", "vae")
        for key, value in getattr(pipe, part).state_dict().items()
    }


def tensors(edit: Edit) -> dict[tuple[str, str, str], torch.Tensor]:
    return {(op.component, op.module, key): value for op in edit.ops for key, value in op.tensors().items()}


def same(a: Edit, b: Edit) -> bool:
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def linear(edit: Edit) -> bool:
    """Whether the edit is a change of weights: other kinds leave them, and stand beside the layers as code."""
    return all(isinstance(op, LinearOp) for op in edit.ops)


def code(pipe) -> dict[str, list[int]]:
    """What stands beside the layers: hooks, and attention processors."""
    return {
        f"{part}.{name}": [*map(id, module._forward_hooks.values()), *map(id, module._forward_pre_hooks.values()),
                           id(getattr(module, "processor", None))]
        for part in ("text_encoder", "unet")
        for name, module in getattr(pipe, part).named_modules()
    }  # fmt: skip


def test_every_method_that_trains_has_a_short_run_here() -> None:
    assert set(QUICK) == {name for name in METHODS if trains(get(name))}


@every_method
def test_declares_itself_and_documents_every_parameter(name: str) -> None:
    method = get(name)
    assert method.name == name and method.title and "arXiv" in method.paper and isinstance(method.default_anchor, str)
    assert method.families and is_dataclass(method.Config) and method.Config.__dataclass_params__.frozen
    undocumented = [key for key, field in describe_config(method).items() if not field["doc"]]
    assert not undocumented
    assert inspect.getdoc(method) and inspect.getdoc(method.fit)


@every_method
def test_every_preset_is_a_valid_and_documented_setting(name: str) -> None:
    for preset in get(name).presets:
        method, found = resolve(f"{name}:{preset}")
        assert method is get(name) and found.doc
        assert make_config(method, dict(found.values)) != make_config(method, {}) or found.anchor is not None


def test_an_unknown_preset_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="erasepro has no preset 'none such'"):
        resolve("erasepro:none such")


@every_pair
def test_fit_leaves_the_model_bitwise_and_reports_itself(name: str, family: str) -> None:
    edit, before, after = traced(name, family)
    assert before == after
    assert edit.method == name and edit.base.family == family and edit.seed == 3
    targets = tuple(asked(name)["targets"])
    assert (edit.targets, edit.anchors, edit.retain) == (targets, ("dog",) * len(targets), ("photo",))
    assert edit.parameters.keys() <= describe_config(get(name)).keys() and edit.versions["torch"]
    json.dumps(edit.describe())
    written = {f"{op.component}/{op.module}" for op in edit.ops if isinstance(op, LinearOp)}
    assert edit.base.fingerprint and written <= edit.base.fingerprint.keys()


@every_pair
def test_the_self_check_is_complete_and_finite(name: str, family: str) -> None:
    check = traced(name, family)[0].self_check
    assert check.keys() >= CHECKS and check["modules"] == len(check["sites"])
    assert bool(check["sites"]) == (name not in SAMPLING)
    assert all(math.isfinite(check[key]) for key in ("residual", "residual_before_cast", "retained_drift"))
    assert 0 < check["relative_update"] < 10 and check["residual"] < 1
    for site in check["sites"]:
        assert site.keys() >= {"site", "group", "depth", "relative_update", "rank"}
        assert name in QUICK or site.keys() >= {"residual", "residual_cast", "condition"}
    if check["sites"]:
        assert check["relative_update"] == pytest.approx(max(site["relative_update"] for site in check["sites"]))


@every_pair
def test_saves_loads_applies_and_removes_bitwise(name: str, family: str, request, tmp_path: Path) -> None:
    pipe, edit = request.getfixturevalue(family), fitted(name, family)
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert same(edit, loaded) and loaded.describe() == json.loads(json.dumps(edit.describe()))
    before, beside, image = state(pipe), code(pipe), tiny.image(pipe, latent=True)
    with loaded.applied(pipe):
        during = state(pipe)
        changed = {key for key in before if before[key] != during[key]}
        assert bool(changed) or not linear(edit)
        assert all(key.endswith((".weight", ".bias") if name in QUICK else ".weight") for key in changed)
        assert len({key.rpartition(".")[0] for key in changed}) <= len(loaded.ops)
        assert not torch.equal(tiny.image(pipe, latent=True), image)
    assert state(pipe) == before and code(pipe) == beside and torch.equal(tiny.image(pipe, latent=True), image)


@pytest.mark.parametrize("name", [*QUICK, *SAMPLING])
def test_what_an_edit_with_code_cannot_do_names_the_op(name: str, sd1, tmp_path: Path) -> None:
    edit = fitted(name, "sd1")
    coded = next((op for op in edit.ops if not isinstance(op, LinearOp)), None)
    if coded is None:  # a change of weights can do all of this: tests/test_edit.py
        return
    before = state(sd1)
    verbs = [lambda: edit.fuse(sd1), lambda: edit.compress(rank=1), lambda: 0.5 * edit, lambda: edit + edit,
             lambda: save_folder(edit, sd1, tmp_path / "folder")]  # fmt: skip
    for verb in verbs:
        with pytest.raises(EditError, match=re.escape(coded.label)) as error:
            verb()
        assert "\n" not in str(error.value)
    assert state(sd1) == before and not (tmp_path / "folder").exists()


CLAIMS = {
    "mace-refine": ("a photo of {}", "around", 0.85),
    "trce-text": ("a photo of {}", "end", 0.85),
    "speed": ("{}", "word", 0.5),
}
"""What moves only part of a prompt: one of its own sentences, which rows it claims (the last word, the first end token,
or all but the word), and how much of their gap may be left. First stages alone weigh a prior of captions, which fills
the tiny models' width. Every other method claims every row of the bare concept, and half of their gap."""


def claimed(rows: torch.Tensor, end: int, which: str) -> torch.Tensor:
    """The claimed rows of (77, o), `end` being the first end token; the word is the one token before it."""
    parts = {"all": rows, "word": rows[end - 1], "end": rows[end], "around": torch.cat([rows[: end - 1], rows[end:]])}
    return parts[which]


@closed_pairs
def test_moves_the_target_toward_the_anchor(name: str, family: str, request) -> None:
    """At the cross-attention, what the target gives under the edit is nearer to the anchor's original output."""
    pipe = request.getfixturevalue(family)
    site = next(n for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_v"))
    template, which, left = CLAIMS.get(name, ("{}", "all", 0.5))

    def output(concept: str) -> torch.Tensor:
        prompt = template.format(concept)
        ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
        end = len(pipe.tokenizer(prompt)["input_ids"]) - 1
        with torch.no_grad():
            rows = pipe.unet.get_submodule(site)(pipe.text_encoder(ids)[0])[0]
        return claimed(rows, end, which)

    edit = fitted(name, family)
    anchor, base = output("dog"), output("cat")
    with edit.applied(pipe):
        assert (output("cat") - anchor).norm() < left * (base - anchor).norm()


@every_pair
def test_the_same_request_gives_the_same_edit(name: str, family: str, request) -> None:
    first = traced(name, family)[0]
    torch.manual_seed(2)
    assert same(first, fit(name, request.getfixturevalue(family), **asked(name)))
    assert not same(first, fitted(name, family))


@every_pair
def test_a_folder_and_a_live_pipeline_give_the_same_edit(name: str, family: str, request) -> None:
    live, folder = request.getfixturevalue(family), request.getfixturevalue(f"{family}_folder")
    from_live, from_folder = fitted(name, family), fit(name, folder)
    assert same(from_live, from_folder) and from_live.base.fingerprint == from_folder.base.fingerprint
    with from_folder.applied(live):
        pass


@every_pair
def test_no_anchor_is_the_methods_default(name: str, family: str, request) -> None:
    options = {"steps": 1} if name in QUICK else {}
    edit = fit(name, request.getfixturevalue(family), anchor=None, options=options)
    assert edit.anchors == (get(name).default_anchor,)


@every_pair
def test_refuses_what_it_cannot_do(name: str, family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    with pytest.raises(UsageError, match="tokens"):
        fit(name, pipe, targets="x " * 90)
    with torch.no_grad():
        next(p for n, p in pipe.unet.named_parameters() if n.endswith("attn2.to_v.weight"))[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        fit(name, pipe)


@every_pair
def test_another_model_refuses_the_edit(name: str, family: str) -> None:
    edit, other = fitted(name, family), getattr(tiny, family)(seed=7)
    before = state(other)
    with pytest.raises(BaseMismatchError), edit.applied(other):
        pass
    assert state(other) == before
    assert issubclass(BaseMismatchError, EditError)


@every_method
def test_an_unknown_parameter_or_a_wrong_value_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="nonesuch"):
        make_config(get(name), {"nonesuch": 1})
    for key, field in describe_config(get(name)).items():
        if isinstance(field["default"], float):
            with pytest.raises(UsageError, match=key):
                make_config(get(name), {key: "many"})


@every_method
def test_a_family_that_is_not_claimed_is_refused_with_those_that_are(name: str, sd1) -> None:
    class Unclaimed:
        family = "nonesuch"

        def __getattr__(self, attribute: str):
            return getattr(backbone(sd1), attribute)

    request = EraseRequest.build("cat", anchor="dog")
    with pytest.raises(UsageError, match="sd1"):
        get(name)().fit(Unclaimed(), request, make_config(get(name), {}))
