"""A weight is known again across precisions, and told apart from every other."""

from __future__ import annotations

import edits

from erasekit.fingerprint import fingerprint, matches, strangers


def test_a_fingerprint_knows_a_weight_across_precisions_both_ways():
    weight = edits.noise(5, 7, seed=0)
    copies = [weight, weight.half(), weight.bfloat16(), weight.half().float()]
    for other in copies:
        assert matches(other, fingerprint(weight))
        assert matches(weight, fingerprint(other))
    assert matches(weight.T.contiguous().T, fingerprint(weight))


def test_a_fingerprint_tells_values_and_shapes_apart():
    weight = edits.noise(5, 7, seed=0)
    changed = weight.clone()
    changed[4, 6] *= 1.001
    assert not matches(changed, fingerprint(weight))
    assert not matches(weight.reshape(7, 5), fingerprint(weight))
    assert not matches(weight, {})


def test_two_roundings_of_one_weight_do_not_match_and_it_is_said():
    weight = edits.noise(50, 70, seed=0)
    for one, other in ((weight.half(), weight.bfloat16()), (weight.bfloat16(), weight.half())):
        assert not matches(one, fingerprint(other))
        now, made = (str(part.dtype).removeprefix("torch.") for part in (one, other))
        assert f"in {made} or float32 (these weights are {now}" in strangers(one, fingerprint(other))
        assert matches(one.to(other.dtype), fingerprint(one)), "rounded from what is recorded, and not beside it"
    for one, other in ((weight, weight.half()), (weight.half(), weight), (weight.half(), weight.half())):
        assert strangers(one, fingerprint(other)) == ""
    assert strangers(weight.half(), {}) == ""
