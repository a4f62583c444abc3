"""Named arrays and all arithmetic on them. No Ray, no framework, no clock.

`Weights` maps tensor names to numpy arrays. Nothing here writes into an argument:
arrays from Ray's object store are read-only.
"""

from fedray.weights.arrays import (
    KINDS,
    MAX_DIMENSIONS,
    Form,
    Schema,
    Weights,
    cast,
    distance,
    distances,
    load,
    mismatch,
    n_bytes,
    non_finite,
    row,
    save,
    schema,
    size_of,
)
from fedray.weights.mean import RunningMean, mean_of_stack
from fedray.weights.sketch import sketch

__all__ = [
    "KINDS",
    "MAX_DIMENSIONS",
    "Form",
    "RunningMean",
    "Schema",
    "Weights",
    "cast",
    "distance",
    "distances",
    "load",
    "mean_of_stack",
    "mismatch",
    "n_bytes",
    "non_finite",
    "row",
    "save",
    "schema",
    "size_of",
    "sketch",
]
