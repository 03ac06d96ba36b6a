"""A weight is known again across precisions, and told apart from every other."""

from __future__ import annotations

import edits

from erasekit.fingerprint import fingerprint, matches


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
