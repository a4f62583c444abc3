"""What adaptive fusion saves and costs on real digits: a small part of the job."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import adaptive

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SEED = (0,)


def compared(scheme: str) -> tuple[adaptive.Done, adaptive.Done]:
    (always,) = adaptive.measured(scheme, SEED, {})
    (ours,) = adaptive.measured(scheme, SEED, adaptive.ADAPTIVE)
    return always, ours


def test_alike_parties_fuse_rarely_and_unlike_ones_often():
    always, ours = compared("iid")
    assert ours.megabytes <= 0.25 * always.megabytes
    assert ours.accuracy >= always.accuracy - 0.005
    plain, unlike = compared("two digits")
    assert len(unlike.fused) > len(ours.fused)
    assert unlike.accuracy >= 0.94 * plain.accuracy
    assert unlike.megabytes <= 0.5 * plain.megabytes


def test_identical_parties_fuse_where_they_must():
    (same,) = adaptive.measured("identical", SEED, adaptive.ADAPTIVE)
    assert len(same.fused) <= 3


def test_bytes_are_those_of_models_and_sketches():
    # by hand: 50,890 float32; 8 parties; 40 rounds; the start, then two per fusion
    model = 50_890 * 4
    (always,) = adaptive.measured("iid", SEED, {"rounds": 2})
    assert always.megabytes == pytest.approx(8 * 5 * model / 1e6)
    (ours,) = adaptive.measured("iid", SEED, {**adaptive.ADAPTIVE, "rounds": 2})
    sketches = 8 * 2 * 2048
    assert ours.megabytes == pytest.approx((8 * 5 * model + sketches) / 1e6)
