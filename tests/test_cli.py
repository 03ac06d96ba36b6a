"""The command line: what each command does, and every bad input as one line with the right exit code."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from erasekit import cli, io
from erasekit.cli import settings
from erasekit.errors import UsageError

PYTHON = [sys.executable, "-m", "erasekit"]


def call(*words: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, *map(str, words)], capture_output=True, text=True, timeout=300, **options)


def done(*words: object, **options) -> str:
    """The output of a command that must succeed, in a process of its own, and say nothing on stderr."""
    result = call(*words, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture
def within(capfd: pytest.CaptureFixture[str]):
    """`done` without the cost of a new process."""

    def run(*words: object) -> str:
        capfd.readouterr()
        code = cli.main([str(word) for word in words])
        shown = capfd.readouterr()
        assert (code, shown.err) == (0, "")
        return shown.out

    return run


@pytest.fixture(scope="module")
def edit(sd1_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edit") / "cat.safetensors"
    words = ("erase", "cat", "--anchor", "dog", "--model", sd1_folder, "--retain", "fox", "--out", path)
    assert cli.main([str(word) for word in words]) == 0
    return path


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows beyond these bytes: what is more fails in write(2), as on a full disk."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


# -- what each command does ---------------------------------------------------------------------------------------


def test_erase_prints_the_self_check_and_saves(within, sd1_folder: Path, tmp_path: Path) -> None:
    retained = tmp_path / "keep.txt"
    retained.write_text("# kept\nfox\n\n a photo \n")
    out = tmp_path / "e.safetensors"
    text = within("erase", "cat", "the", "--anchor", "dog", "a", "--model", sd1_folder, "--retain-file", retained,
                  "--method", "uce", "--set", "lamb=0.25", "--seed", 7, "--out", out)  # fmt: skip
    assert "cross" in text and "residual" in text and f"wrote {out}" in text
    edit = io.load(out)
    assert (edit.method, edit.targets, edit.anchors, edit.retain) == ("uce", ("cat", "the"), ("dog", "a"), ("fox", "a photo"))
    assert (edit.seed, edit.parameters["lamb"]) == (7, 0.25)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_spec_file_and_command_line_over_it(within, sd1_folder: Path, tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(f"targets: cat\nanchor: [dog]\nmethod: uce\nmodel: {sd1_folder}\nparameters: {{lamb: 0.25}}\nseed: 3\n")
    out = tmp_path / "e.safetensors"
    within("erase", "--spec", spec, "--set", "erase_scale=2", "--seed", 4, "--out", out)
    edit = io.load(out)
    assert (edit.targets, edit.seed, edit.parameters["lamb"], edit.parameters["erase_scale"]) == (("cat",), 4, 0.25, 2.0)


def test_show(edit: Path, within) -> None:
    shown = json.loads(within("show", edit, "--json"))
    assert {"method", "parameters", "targets", "anchors", "base", "ops", "rank_max", "bytes", "self_check"} <= set(shown)
    assert {"modules", "residual", "relative_update", "retained_drift"} <= set(shown["self_check"])
    text = within("show", edit)
    assert "'cat' -> 'dog'" in text and "text 0" in text


def test_show_says_where_no_drift_was_measured(within, sd1_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    # So few positions that all fit into the tiny model's width: what gives way there would be measured.
    words = ("erase", "cat", "--anchor", "dog", "--model", sd1_folder, "--out", out, "--set", "positions=content")
    assert "drift of what is kept: not measured, nothing was retained" in re.sub(" +", " ", within(*words))
    assert json.loads(within("show", out, "--json"))["self_check"]["retained_drift"] is None
    shown = within(*words, "--retain", "fox", "--set", "retain_mode=none")
    assert "measured, not held: fox" in shown and "not measured" not in shown


def test_apply_writes_a_folder_with_the_edit_fused(
    within, edit: Path, sd1_folder: Path, sd1, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from erasekit import models

    out = tmp_path / "fused"
    out.mkdir()  # an empty folder is welcome
    within("apply", edit, "--model", sd1_folder, "--out", out)
    fused = models.load(out)
    with io.load(edit).applied(sd1):
        for component in ("text_encoder", "unet", "vae"):
            wanted = getattr(sd1, component).state_dict()
            found = getattr(fused, component).state_dict()
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert list(tmp_path.iterdir()) == [out]
    refused(["apply", str(edit), "--model", str(sd1_folder), "--out", str(out)], 1, "not an empty folder", capfd)


def test_generate_is_deterministic_and_resumes(within, edit: Path, sd1_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    common = ("--model", sd1_folder, "--steps", 2, "--edit", edit)
    assert "6 images drawn" in within("generate", "a cat", "a dog", *common, "--seeds", "0-2", "--out", one)
    kept = {p.name: p.stat().st_mtime_ns for p in one.iterdir()}
    assert len(kept) == 6
    cut = sorted(one.iterdir())[0]
    cut.write_bytes(cut.read_bytes()[:200])  # as after a crash of another program
    text = within("generate", "a cat", "a dog", *common, "--seeds", "0,1-3", "--out", one)
    assert "3 images drawn, 5 kept" in text
    assert all(p.stat().st_mtime_ns == kept[p.name] for p in one.iterdir() if p.name in kept and p != cut)
    within("generate", "a cat", *common, "--seeds", "2", "--batch", "1", "--out", two)
    (alone,) = two.iterdir()
    assert pixels(alone) == pixels(one / alone.name)
    plain = within("generate", "a cat", "--model", sd1_folder, "--steps", 2, "--seeds", "2", "--out", two)
    assert "1 images drawn" in plain and pixels(alone) != pixels(one / alone.name), "other settings draw anew"


def test_generate_knows_a_model_by_its_files(within, sd1_folder: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(sd1_folder, model)

    def drawn(place: Path) -> str:
        return within("generate", "a cat", "--model", place, "--steps", 1, "--seeds", "0", "--out", out)

    assert "1 images drawn" in drawn(model)
    assert "0 images drawn, 1 kept" in drawn(tmp_path / "out" / ".." / "model"), "another way to the same files"
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"spare")
    model = model.rename(tmp_path / "renamed")
    assert "0 images drawn, 1 kept" in drawn(model), "another name, and a file that is not read"
    (path,) = (model / "unet").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the lowest bits of a sign and exponent byte: another weight
    path.write_bytes(data)
    assert "1 images drawn" in drawn(model), "other weights under the same name"


def test_generate_sweeps_its_own_folder_and_not_those_below(within, sd1_folder: Path, tmp_path: Path) -> None:
    from erasekit import files

    left = files._beside(tmp_path / "x.png").name.replace(f"-{os.getpid()}-", f"-{2**30}-")  # of no process
    for folder in (tmp_path, tmp_path / "another"):
        folder.mkdir(exist_ok=True)
        (folder / left).write_bytes(b"half")
    within("generate", "a cat", "--model", sd1_folder, "--steps", 1, "--seeds", "0", "--out", tmp_path)
    assert not (tmp_path / left).exists() and (tmp_path / "another" / left).exists()


def test_export(within, edit: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    for format in ("peft", "kohya", "comfy"):
        out = tmp_path / f"{format}.safetensors"
        within("export", edit, "--format", format, "--out", out)
        with safe_open(out, "pt") as file:
            assert len(list(file.keys())) > 0


@pytest.mark.slow  # quick twin, in one process: `test_the_shell_commands` of the README
def test_erase_show_apply_export_generate_in_processes_of_their_own(sd1_folder: Path, tmp_path: Path) -> None:
    edit, lora, fused, pictures = (tmp_path / name for name in ("e.safetensors", "lora.safetensors", "fused", "pictures"))
    done("erase", "cat", "--anchor", "dog", "--model", sd1_folder, "--out", edit)
    assert json.loads(done("show", edit, "--json"))["targets"] == ["cat"]
    done("apply", edit, "--model", sd1_folder, "--out", fused)
    done("export", edit, "--format", "peft", "--out", lora)
    done("generate", "a cat", "--model", fused, "--steps", 1, "--seeds", "0", "--out", pictures)
    assert lora.is_file() and len(list(pictures.glob("*.png"))) == 1


def test_lists(within) -> None:
    methods = json.loads(within("methods", "--json"))
    assert {"erasepro", "uce"} <= set(methods) and methods["uce"]["parameters"]["lamb"]["default"] == 0.5
    assert "--set lamb=0.5" in within("methods")
    assert "emoji" in json.loads(within("models", "--json")) and "emoji" in within("models")


# -- bad input: one line on stderr, the exit code, nothing written ---------------------------------------------------

LONG = "a " * 80
ERASE = {
    "no target": ([], 2, "no target"),
    "empty target": ([" "], 2, "empty"),
    "twice the same": (["cat", "cat"], 2, "cat"),
    "its own anchor": (["cat", "--anchor", "cat"], 2, "anchor"),
    "target retained": (["cat", "--anchor", "dog", "--retain", "cat"], 2, "retain"),
    "anchors do not fit": (["cat", "dog", "fox", "--anchor", "a", "the"], 2, "anchor"),
    "too long": ([LONG, "--anchor", "dog"], 2, "77"),
    "unknown method": (["cat", "--method", "magic"], 2, "use one of erasepro, "),
    "unknown parameter": (["cat", "--set", "magic=1"], 2, "no parameter magic"),
    "parameter of another type": (["cat", "--method", "uce", "--set", "lamb=much"], 2, "lamb"),
    "no parameter": (["cat", "--set", "lamb"], 2, "KEY=VALUE"),
    "an option as a parameter": (["cat", "--set", "seed=3"], 2, "give --seed"),
    "unknown model": (["cat", "--model", "magic"], 1, "magic"),
    "no retain file": (["cat", "--retain-file", "{tmp}/none.txt"], 2, "none.txt"),
    "no spec": (["cat", "--spec", "{tmp}/none.yaml"], 2, "none.yaml"),
    "no device": (["cat", "--device", "abacus"], 2, "abacus"),
    "no real device": (["cat", "--device", "meta"], 2, "meta"),
    "output is a folder": (["cat", "--out", "{tmp}"], 1, "folder"),
    "output under a file": (["cat", "--out", "{tmp}/file.txt/x.safetensors"], 1, "file.txt"),
    "output nowhere": (["cat", "--out", "/proc/nowhere/x.safetensors"], 1, "/proc/nowhere"),
}


def refused(words: list[str], code: int, says: str, captured: pytest.CaptureFixture[str]) -> None:
    """The command ends with `code`, and stderr is one line that holds `says`."""
    captured.readouterr()
    assert cli.main(words) == code
    lines = captured.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("erasekit: ") and says in lines[0], lines
    assert "Traceback" not in lines[0] and "unexpected" not in lines[0]


@pytest.mark.parametrize("case", ERASE)
def test_bad_erase(case: str, sd1_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words, code, says = ERASE[case]
    (tmp_path / "file.txt").write_text("")
    words = ["erase", *(word.replace("{tmp}", str(tmp_path)) for word in words)]
    words += [] if "--model" in words else ["--model", str(sd1_folder)]
    words += [] if "--out" in words else ["--out", str(tmp_path / "e.safetensors")]
    refused(words, code, says, capfd)
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_no_output_named(sd1_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["erase", "cat", "--model", str(sd1_folder)], 2, "--out", capfd)


@pytest.mark.parametrize("text", [
    "targets: [cat]\nmagic: 1", "- cat", "targets: {a: 1}", "a: [", "seed: x\ntargets: cat", "retain_file: [a]", "model: 1.5",
    "dry_run: maybe", "parameters: [1]", "parameters: {1: 2}", "parameters: {yes: 1}", "parameters: {retain: fox}",
])  # fmt: skip
def test_bad_spec(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(text)
    words = ["erase", "cat"] if "targets" not in text else ["erase"]
    refused([*words, "--spec", str(spec), "--set", "ridge=0", "--out", str(tmp_path / "e.safetensors")], 2, "", capfd)


def test_a_spec_names_its_output_in_one_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text("targets: cat\nout: [a]")
    refused(["erase", "--spec", str(spec)], 2, "out must be text, not ['a']", capfd)


def test_every_option_of_erase_is_refused_as_a_parameter() -> None:
    import inspect

    from erasekit import api

    kinds = {name: p.kind for name, p in inspect.signature(api.erase).parameters.items()}
    assert settings.INSTEAD.keys() == {name for name, kind in kinds.items() if kind is not inspect.Parameter.VAR_KEYWORD}
    for name in settings.INSTEAD:
        with pytest.raises(UsageError, match=f"{name} is not a parameter"):
            settings._check_names({name: "x"})


def test_folders_that_are_no_model(tmp_path: Path, sd1_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "e.safetensors")]
    refused(["erase", "cat", "--model", str(tmp_path), *out], 1, "model_index.json", capfd)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in sd1_folder.rglob("*"):
        if path.is_file():
            target = broken / path.relative_to(sd1_folder)
            target.parent.mkdir(exist_ok=True)
            data = path.read_bytes()
            target.write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    refused(["erase", "cat", "--anchor", "dog", "--model", str(broken), *out], 1, "broken", capfd)
    refused(["generate", "a cat", "--model", str(broken), "--out", str(tmp_path / "g")], 1, "broken", capfd)
    (broken / "model_index.json").write_text("{")
    refused(["erase", "cat", "--model", str(broken), *out], 1, "model_index.json", capfd)
    assert not (tmp_path / "e.safetensors").exists()


class Evil:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.made),)


def bad_edits(edit: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    data, files = edit.read_bytes(), {}
    for name, content in {"cut": data[:-100], "header": data[:40], "flipped": data[:-8] + b"\xff" * 8, "empty": b"",
                          "pickle": pickle.dumps(Evil(folder / "ran")), "text": b"hello, no edit at all"}.items():  # fmt: skip
        files[name] = folder / f"{name}.safetensors"
        files[name].write_bytes(content)
    torch.save({"a": torch.zeros(1)}, folder / "torch.pt")
    says = dict.fromkeys(files, "damaged") | {"pickle": "pickle"}
    cases = {name: (path, says[name]) for name, path in files.items()}
    return cases | {"torch": (folder / "torch.pt", "zip"), "none": (folder / "none", "none"), "folder": (folder, "folder")}


def test_bad_edit_files(edit: Path, sd1_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path, says in bad_edits(edit, tmp_path).values():
        refused(["show", str(path)], 1, says, capfd)
        refused(["apply", str(path), "--model", str(sd1_folder), "--out", str(tmp_path / "out")], 1, says, capfd)
        refused(["export", str(path), "--format", "peft", "--out", str(tmp_path / "out")], 1, says, capfd)
        refused(["generate", "a cat", "--model", str(sd1_folder), "--edit", str(path), "--out", str(tmp_path / "out")],
                1, says, capfd)  # fmt: skip
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()


def test_edit_of_another_model(edit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import tiny

    tiny.sd1(seed=1).save_pretrained(tmp_path / "other")
    refused(["apply", str(edit), "--model", str(tmp_path / "other"), "--out", str(tmp_path / "out")], 1, "other", capfd)
    refused(["generate", "a cat", "--edit", str(edit), "--model", str(tmp_path / "other"), "--out", str(tmp_path / "out")],
            1, "", capfd)  # fmt: skip
    assert list(tmp_path.rglob("*.png")) == [] and [p.name for p in tmp_path.iterdir() if p.name[0] == "."] == []


@pytest.mark.parametrize(("words", "says"), [
    (["a cat", "--seeds", "3-1"], "--seeds"), (["a cat", "--seeds", "x"], "--seeds"), (["a cat", "--steps", "0"], "--steps"),
    (["a cat", "--seeds", "9999999999999999999"], "2^63"), (["a cat", "--steps", "5000"], "1000"),
    ([" "], "empty"), ([LONG], "77"), (["a cat", "--scale", "nan"], "--scale"), (["a cat", "--device", "abacus"], "abacus"),
])  # fmt: skip
def test_bad_generate(words: list[str], says: str, sd1_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["generate", *words, "--model", str(sd1_folder), "--out", str(tmp_path / "out")], 2, says, capfd)
    assert list((tmp_path / "out").glob("*")) == []


def test_bad_words_end_in_the_parser() -> None:
    assert "Stable Diffusion" in done("models")
    for words in (["magic"], [], ["export", "x", "--format", "magic", "--out", "y"], ["show"]):
        result = call(*words)
        assert result.returncode == 2 and "usage: erasekit" in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(tmp_path / "none"), "--debug"]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_a_full_disk_leaves_nothing(sd1_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files fails in write(2), as a full disk does."""
    words = ["erase", "cat", "--anchor", "dog", "--model", str(sd1_folder), "--out", str(tmp_path / "e.safetensors")]
    with disk_of(2000):
        refused(words, 1, "cannot be written", capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_apply_is_one_line(
    edit: Path, sd1_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here it is safetensors that writes, with an error of its own."""
    with disk_of(60000):
        refused(["apply", str(edit), "--model", str(sd1_folder), "--out", str(tmp_path / "out")], 1, "cannot be written",
                capsys)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_stopped_in_the_middle_and_run_again(
    within, number: signal.Signals, sd1_folder: Path, tmp_path: Path
) -> None:
    words = ["generate", "a cat", "--model", str(sd1_folder), "--steps", "2", "--batch", "1", "--out", str(tmp_path)]
    process = subprocess.Popen([*PYTHON, *words, "--seeds", "0-2000"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               # A shell's background job, and all that it starts, would ignore the interrupt.
                               text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    if number is signal.SIGINT:
        assert process.returncode == 1 and error.startswith("erasekit: interrupted") and len(error.splitlines()) == 1
    found = list(tmp_path.glob("*.png"))
    assert len(found) >= 2 and all(pixels(path) for path in found)
    count = len(found)
    assert f"1 images drawn, {count} kept" in within(*words, "--seeds", f"0-{count}")


# -- start-up -----------------------------------------------------------------------------------------------------

HEAVY = "torch diffusers transformers peft accelerate numpy PIL yaml rich safetensors huggingface_hub"


@pytest.mark.parametrize("code", [
    "import erasekit; dir(erasekit); erasekit.UsageError",
    "from erasekit.cli import main; main(['models'])",
    "from erasekit.cli import main\ntry: main(['erase', '--help'])\nexcept SystemExit: pass",
    "from erasekit.cli import main; main(['erase', 'cat'])",
])  # fmt: skip
def test_nothing_heavy_is_imported(code: str) -> None:
    check = f"\nimport sys; print('HEAVY', *(m for m in '{HEAVY}'.split() if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "HEAVY"


# -- retained lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("fox\nwolf\n".encode("utf-16"), "UTF-16"),
        ("fox\nwolf\n".encode("utf-16-le"), "UTF-16"),
        ("fox\ncaf\u00e9\n".encode("latin-1"), "0xe9 in line 2"),
        (b"fox\0", "UTF-16, or no text"),
    ],
)
def test_a_retain_file_in_another_encoding(data: bytes, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keep.txt"
    path.write_bytes(data)
    out = tmp_path / "e.safetensors"
    refused(["erase", "cat", "--retain-file", str(path), "--out", str(out)], 2, says, capfd)
    with pytest.raises(UsageError, match=f"{path} is not UTF-8 text.*save it as UTF-8"):
        settings.read_lines(path)


def test_a_byte_order_mark_is_no_part_of_the_first_concept(tmp_path: Path) -> None:
    path = tmp_path / "keep.txt"
    path.write_bytes(b"\xef\xbb\xbffox\r\n\r\n  # no\r\n caf\xc3\xa9 \r\n")
    assert settings.read_lines(path) == ["fox", "caf\u00e9"]


def test_retain_cache(within, sd1_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache, outs = tmp_path / "cache", [tmp_path / f"{n}.safetensors" for n in range(3)]
    words = ["erase", "cat", "--anchor", "dog", "--method", "uce", "--model", str(sd1_folder), "--retain", "fox"]
    for out in outs[:2]:
        within(*words, "--retain-cache", cache, "--out", out)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    spec = tmp_path / "job.yaml"
    spec.write_text(f"retain_cache: {cache}")
    assert cli.main([*words, "--spec", str(spec), "--out", str(outs[2])]) == 0
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("erasekit: warning:") and "computed again" in error
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()


def test_seeds() -> None:
    assert settings.seeds("7") == [7] and settings.seeds("0,2,5-7,6") == [0, 2, 5, 6, 7]
