"""Comparing weights."""

import numpy as np


def assert_close(ours: dict, theirs: dict, tolerance: float = 1e-6) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=tolerance, rtol=0)
