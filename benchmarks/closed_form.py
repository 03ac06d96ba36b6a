"""Seconds, memory and bytes of the closed-form edits on Stable Diffusion 1.4's shapes, with random weights.

    python benchmarks/closed_form.py [--cache FOLDER] [--small] [--only erasepro uce large] [--out FILE]

The model folder (text encoder, U-Net, tokenizer, scheduler; 3.9 GB) is written once to --cache, by default a
temporary folder that is removed. Every measurement runs in a fresh process; memory is that process's high-water
mark, libraries and mapped files included. Files are read warm, imports are timed apart. `cpu_seconds` are summed
over the threads: on a machine that is busy with other work they say more than the clock. Prints a summary, writes JSON.

The textbook loop that UCE is compared with is `textbook` below: prompts encoded one at a time by transformers'
encoder, then for every matrix a pass over the prompts one at a time, and one d x d inverse. Three ratios: of all
that both do (encoding the prompts once is most of it, and cannot be avoided); of what comes after encoding; and,
computed from the same run, of a loop that also encodes the prompts again for every matrix.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TASKS = ("erasepro", "uce", "large")
SIZES = {  # targets and retained prompts of each UCE task
    False: {"uce": (10, 100), "large": (100, 1000)},
    True: {"uce": (3, 6), "large": (10, 40)},
}
CONSONANTS, VOWELS, END = "bcdfghjklmnpqrstvwxyz", "aeiou", "</w>"


# -- the model folder -------------------------------------------------------------------------------------------


def build(folder: Path, small: bool) -> None:
    """A diffusers folder of SD 1.4's public configuration (or of tiny shapes) with random weights; kept if complete."""
    done = folder / "complete"
    if done.exists():
        return
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    CLIPTextModel(text_config(small)).save_pretrained(folder / "text_encoder")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(small))
    unet.save_config(folder / "unet")
    write_random(folder / "unet" / "diffusion_pytorch_model.safetensors", unet.state_dict())
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    parts = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **parts}))
    done.touch()


def text_config(small: bool):
    from transformers import CLIPTextConfig

    size = (32, 64, 2, 4) if small else (768, 3072, 12, 12)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return CLIPTextConfig(
        vocab_size=49408, projection_dim=size[0], hidden_act="quick_gelu", max_position_embeddings=77,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407, **dict(zip(names, size, strict=True)),
    )  # fmt: skip


def unet_config(small: bool) -> dict:
    if small:
        return {
            "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4,
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }  # fmt: skip
    return {
        "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
        "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }  # fmt: skip


def write_random(path: Path, tensors: dict) -> None:
    """A float32 safetensors file of random values, streamed (3.4 GB never stand in memory).

    The weights that get edited are drawn one by one; the others, which are never read, repeat one drawn block.
    """
    import torch

    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = (0.02 * torch.randn(1 << 22)).numpy().tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            if "attn2.to_" in name and tensor.ndim == 2:
                file.write((torch.randn(tensor.shape) / tensor.shape[1] ** 0.5).numpy().tobytes())
            else:
                size = 4 * tensor.numel()
                for start in range(0, size, len(block)):
                    file.write(block[: size - start])


def write_tokenizer(folder: Path) -> None:
    """CLIP's 49408 ids: letters, two-syllable words of one token each, unused ids, the two specials last."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    open_ = [(c, v) for c in CONSONANTS for v in VOWELS]
    close = [(c, v + END) for c in CONSONANTS for v in VOWELS]
    words = [(a + b, c + d) for a, b in open_ for c, d in close]
    pieces = dict.fromkeys([*letters, *(c + END for c in letters), *(a + b for a, b in open_ + close + words)])
    names = [*pieces, *(f"<unused{i}>" for i in range(49406 - len(pieces))), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    CLIPTokenizer(vocab=vocabulary, merges=open_ + close + words, model_max_length=77).save_pretrained(folder)


def concepts(count: int, start: int = 0) -> list[str]:
    """Different concepts of two one-token words."""
    syllables = [c + v for c in CONSONANTS for v in VOWELS]
    size = len(syllables)
    numbers = range(start, start + count)
    return [
        f"{syllables[i % size]}{syllables[(i * 7 + 3) % size]} {syllables[i // size]}{syllables[-1]}" for i in numbers
    ]


# -- measuring --------------------------------------------------------------------------------------------------


class Clock:
    """Exclusive seconds by label: what runs inside another label is not counted in the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._cpu = time.process_time()
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def watch(self, owner: type, method: str, name: str) -> None:
        """Counts every call of the method under `name`, in this process."""
        plain: Callable = getattr(owner, method)

        @wraps(plain)
        def timed(*args: object, **options: object) -> object:
            with self.label(name):
                return plain(*args, **options)

        setattr(owner, method, timed)

    def cpu(self) -> float:
        """Seconds of all threads since the clock was made."""
        return time.process_time() - self._cpu

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now


def high_water() -> int:
    """Peak resident bytes of this process (getrusage would count what the parent had before exec)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measured(method: str, folder: Path, out: Path, **wanted: object) -> tuple[dict, object]:
    """Opens the folder, fits, writes the edit: seconds by part, peak memory, bytes; and the edit."""
    started = time.perf_counter()
    from transformers import CLIPTokenizer  # noqa: F401  (what the folder's tokenizer needs)

    from erasekit import methods
    from erasekit.backbones import _clip, _weights, backbone, sd
    from erasekit.concept import EraseRequest

    cls = methods.get(method)
    imports, clock = time.perf_counter() - started, Clock()
    clock.watch(_weights.FolderWeights, "read", "read")
    clock.watch(sd.SDBackbone, "from_folder", "read")
    clock.watch(sd.SDBackbone, "fingerprint", "fingerprint")
    for part in ("embed", "layer", "output", "attention_input"):
        clock.watch(_clip.ClipTower, part, "encode")
    with clock.label("solve"):
        model = backbone(str(folder))
        edit = cls().fit(model, EraseRequest.build(**wanted), methods.make_config(cls, {}))
    with clock.label("write"):
        edit.save(out)
    cpu = clock.cpu()
    seconds = {name: round(value, 3) for name, value in clock.seconds.items()}
    sites = [model.weight(site) for site in model.sites("all") if site.key in edit.base.fingerprint]
    weights = sum(w.numel() * w.element_size() for w in sites)
    return {
        "seconds": round(sum(clock.seconds.values()), 3),
        "cpu_seconds": round(cpu, 3),
        "parts": seconds,
        "import_seconds": round(imports, 3),
        "peak_rss_mb": round(high_water() / 1e6),
        "edit_bytes": out.stat().st_size,
        "edited_weight_bytes": weights,
        "weights_over_edit": round(weights / out.stat().st_size, 1),
        "residual": edit.self_check["residual"],
    }, edit


def request(targets: int, retained: int, anchor: str = "") -> dict[str, object]:
    return {"targets": concepts(targets), "anchor": anchor, "retain": concepts(retained, start=targets)}


# -- the tasks, each in its own process -------------------------------------------------------------------------


def run_erasepro(folder: Path, out: Path, small: bool) -> dict:
    """One target to one anchor, nothing retained."""
    return measured("erasepro", folder, out, targets=concepts(1), anchor=concepts(1, start=5))[0]


def run_large(folder: Path, out: Path, small: bool) -> dict:
    """UCE with many targets and many retained prompts."""
    return measured("uce", folder, out, **request(*SIZES[small]["large"]))[0]


def run_uce(folder: Path, out: Path, small: bool) -> dict:
    """UCE beside the textbook loop, in one process."""
    wanted = request(*SIZES[small]["uce"])
    ours, edit = measured("uce", folder, out, **wanted)
    weights = edited_weights(folder, edit)
    theirs, solved = textbook(folder, weights, wanted["targets"], wanted["retain"])
    worst = {"weight": 0.0, "update": 0.0}
    for op in edit.ops:
        old, plain = weights[op.module].double(), solved[op.module]
        apart = (old + op.delta(weights[op.module]).double() - plain).norm()
        worst["weight"] = max(worst["weight"], float(apart / plain.norm()))
        worst["update"] = max(worst["update"], float(apart / (plain - old).norm()))
    both = theirs["encode"] + theirs["loop"]
    after = ours["seconds"] - sum(ours["parts"][name] for name in ("encode", "read", "write"))
    again = len(edit.ops) * theirs["encode"] + theirs["loop"]
    return {
        "uce": ours,
        "textbook": theirs,
        "ratio": round(both / ours["seconds"], 1),
        "ratio_cpu": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 1),
        "ratio_after_encoding": round(theirs["loop"] / after, 1),
        "ratio_encoding_for_every_matrix": round(again / ours["seconds"], 1),
        "relative_difference": worst,
    }


def edited_weights(folder: Path, edit) -> dict:
    """The original weight of every op, by module name."""
    from safetensors import safe_open

    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        return {op.module: file.get_tensor(f"{op.module}.weight") for op in edit.ops}


def textbook(folder: Path, weights: dict, targets: list[str], retain: list[str]) -> tuple[dict, dict]:
    """The method as its formula reads, in float64: W = (lamb W_o + ...)(lamb I + ...)^-1, anchor = the empty prompt."""
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()

    @torch.no_grad()
    def encode(prompt: str):
        batch = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
        return encoder(batch["input_ids"])[0][0].double(), int(batch["attention_mask"].sum()) - 2

    started, cpu = time.perf_counter(), time.process_time()
    pairs = []
    for target in targets:
        (rows, f), (others, g) = encode(target), encode("")
        far = max(f, g)
        pairs.append((rows[f : 77 - (far - f)], others[g : 77 - (far - g)]))
    kept = [encode(prompt)[0] for prompt in ["", *retain]]
    encoded = time.perf_counter()
    scale, lamb, solved = max(0.1, 1 / len(kept)), 0.5, {}
    for name, weight in weights.items():
        old = weight.double()
        top, bottom = lamb * old, lamb * torch.eye(old.shape[1], dtype=old.dtype)
        for x, y in pairs:
            top += (old @ y.T) @ x
            bottom += x.T @ x
        for r in kept:
            top += scale * (old @ r.T) @ r
            bottom += scale * r.T @ r
        solved[name] = top @ torch.linalg.inv(bottom)
    ended = time.perf_counter()
    taken = {"encode": encoded - started, "loop": ended - encoded, "cpu_seconds": time.process_time() - cpu}
    return {name: round(value, 3) for name, value in taken.items()}, solved


RUN: dict[str, Callable[[Path, Path, bool], dict]] = {"erasepro": run_erasepro, "uce": run_uce, "large": run_large}


# -- the whole --------------------------------------------------------------------------------------------------


def child(task: str, folder: Path, small: bool) -> dict:
    """Runs one task (or "build") in a fresh interpreter and returns what it found."""
    command = [sys.executable, __file__, "--child", task, "--cache", str(folder)] + ["--small"] * small
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict[str, object]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(), "machine": platform.machine()}  # fmt: skip


def show(results: dict) -> None:
    for task, found in results.items():
        own = found["uce"] if task == "uce" else found
        print(f"{task}: {own['seconds']} s {own['parts']}, peak {own['peak_rss_mb']} MB, "
              f"edit {own['edit_bytes']} bytes = 1/{own['weights_over_edit']} of the edited weights")  # fmt: skip
        if task == "uce":
            print(f"  textbook {found['textbook']}")
            print(*(f"  {name} {value}\n" for name, value in found.items() if name.startswith("r")), sep="", end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="keep the model folder here")
    parser.add_argument("--small", action="store_true", help="tiny shapes, for the tests")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--out", type=Path, help="the JSON file (default: results/closed_form[_small].json)")
    parser.add_argument("--child", choices=(*TASKS, "build"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "build":
        build(options.cache, options.small)
        print("{}")
    elif options.child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(RUN[options.child](options.cache, Path(folder) / "edit.safetensors", options.small)))
    else:
        whole(options)


def whole(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.cache or Path(temporary)) / ("sd14-shapes-small" if options.small else "sd14-shapes")
        child("build", folder, options.small)
        results = {task: child(task, folder, options.small) for task in options.only}
    show(results)
    out = options.out or RESULTS / f"closed_form{'_small' * options.small}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
