"""Features cut short are the same features."""

from __future__ import annotations

import torch

from erasekit.backbones import backbone
from erasekit.methods._cross import silent
from erasekit.methods._features import encoded, last_subject

PROMPTS = ["cat", "a photo of a red fox", "", "dog", "a dog beside a cat"]


def test_last_subject_rows_are_those_of_whole_prompts(sd1) -> None:
    model = backbone(sd1)
    whole = torch.stack([rows[last] for rows, last in encoded(model, PROMPTS, whole=True)], 1)
    found = last_subject(model, PROMPTS, progress=silent, what="")
    assert found.dtype == torch.float64 and found.shape == whole.shape
    torch.testing.assert_close(found.float(), whole, rtol=1e-4, atol=1e-5)


def test_progress_counts_every_prompt_once(sd1) -> None:
    seen: list[tuple[int, int]] = []
    last_subject(backbone(sd1), PROMPTS, progress=lambda done, total, what: seen.append((done, total)), what="x")
    assert seen[0] == (0, 5) and all(total == 5 for _, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] < 5
