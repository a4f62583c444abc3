"""What epsilon means, in words."""

import math

LARGEST = math.log(1e6)  # epsilon that is worth putting into words


def how_many_times(epsilon: float) -> str | None:
    """e^epsilon, by which what one concludes may grow; None of a large epsilon."""
    if not epsilon <= LARGEST:
        return None
    factor = float(f"{math.exp(epsilon):.3g}")
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:g}"
