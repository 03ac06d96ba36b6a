"""Score-distillation losses: the forms that papers write agree, and a mask is what it says."""

from __future__ import annotations

import pytest
import torch

from erasekit.training.losses import anchor_matching, negative_guidance, preservation, squared_error


def predictions(count: int, *, batch: int = 2) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 4, 6, 6, generator=draw, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_both_ways_to_write_the_target_agree(eta: float) -> None:
    """y(eta' = eta + 1, host = target) is the paper's empty - eta (target - empty)."""
    target, empty = predictions(2)
    paper = empty - eta * (target - empty)
    assert torch.allclose(negative_guidance(target, target, empty, eta=eta), paper, atol=1e-12)


def test_strength_zero_of_the_later_code_asks_for_nothing_and_an_equal_anchor_for_itself() -> None:
    target, empty, host = predictions(3)
    assert torch.equal(negative_guidance(host, target, empty, eta=-1), host)
    assert torch.equal(negative_guidance(empty, empty, empty, eta=5), empty)


def test_another_host_loses_only_the_targets_direction() -> None:
    target, empty, host = predictions(3)
    found = negative_guidance(host, target, empty, eta=1)
    assert torch.allclose(host - found, 2 * (target - empty), atol=1e-12)


def test_a_full_mask_is_the_plain_mean_and_what_is_outside_a_mask_does_not_count() -> None:
    student, wanted = predictions(2)
    plain = squared_error(student, wanted)
    assert torch.allclose(plain, ((student - wanted) ** 2).sum() / student.numel())
    mask = torch.ones(2, 1, 6, 6, dtype=torch.float64)
    assert torch.allclose(squared_error(student, wanted, mask), plain)
    mask[:, :, 3:] = 0
    inside = squared_error(student, wanted, mask)
    assert torch.allclose(inside, ((student - wanted)[:, :, :3] ** 2).mean())
    student[:, :, 3:] = 1e6
    assert torch.equal(squared_error(student, wanted, mask), inside)
    assert float(squared_error(student, wanted, mask * 0)) == 0


def test_anchor_matching_is_the_masked_distance_and_asks_nothing_of_the_anchor() -> None:
    student, anchor = (tensor.requires_grad_() for tensor in predictions(2))
    mask = torch.ones(2, 1, 6, 6, dtype=torch.float64)
    mask[:, :, 3:] = 0
    value = anchor_matching(student, anchor, mask)
    assert torch.equal(value, squared_error(student, anchor, mask))
    value.backward()
    assert bool(student.grad.any()) and anchor.grad is None


def test_samples_count_alike_whatever_the_size_of_their_masks() -> None:
    student, wanted = torch.zeros(2, 4, 6, 6), torch.ones(2, 4, 6, 6)
    wanted[1] = 3
    mask = torch.ones(2, 1, 6, 6)
    mask[1, :, 1:] = 0
    assert float(squared_error(student, wanted, mask)) == pytest.approx((1 + 9) / 2)


def test_preservation_is_zero_for_the_teacher_itself() -> None:
    student, teacher = predictions(2)
    assert float(preservation(teacher, teacher, weight=1000)) == 0
    assert torch.allclose(preservation(student, teacher, weight=3), 3 * squared_error(student, teacher))
