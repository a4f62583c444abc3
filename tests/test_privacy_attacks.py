"""Attacks that succeed without a privacy mechanism, and fail with it."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import privacy as attacks


def test_a_digit_is_read_out_of_a_plain_update_and_of_none_that_is_protected(
    monkeypatch,
):
    monkeypatch.setattr(attacks, "N_DIGITS", 20)
    monkeypatch.setattr(attacks, "SUMS", (2, 20))
    success = {row.protection: row.success for row in attacks.inversion()}
    assert success["none"] == success["clipped alone"] == 1
    assert success["secure sum of 2"] > 0.5  # a sum of few hides little
    for protection in (
        "one masked update", "central, epsilon 8", "central, epsilon 2",
        "dp_sgd, epsilon 8", "dp_sgd, epsilon 2",
    ):  # fmt: skip
        assert success[protection] == 0


def test_a_planted_layer_reads_digits_out_of_a_secure_sum_but_not_out_of_noise():
    sums, noised = attacks.planted_layer(n_parties=20, n_bins=400)
    assert sums.success > 0.7  # others have the brightness of a neighbour
    assert noised.success == 0


def test_members_are_told_from_others_where_models_are_surer_of_them():
    numbers = np.random.default_rng(0)
    is_in = numbers.random((16, 200)) < 0.5
    blind = numbers.normal(size=is_in.shape)
    found, _ = attacks.lira((blind, 0.0), is_in)
    assert found < 0.03  # at 1 % false alarms
    found, _ = attacks.lira((blind + 8 * is_in, 0.0), is_in)
    assert found > 0.99
