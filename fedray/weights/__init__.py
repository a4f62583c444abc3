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
    digest,
    distance,
    distances,
    mismatch,
    n_bytes,
    non_finite,
    row,
    schema,
    size_of,
)
from fedray.weights.mean import RunningMean, mean_of_stack
from fedray.weights.npz import load, save
from fedray.weights.sketch import SIZE as SKETCH_SIZE
from fedray.weights.sketch import quantize, sketch

__all__ = [
    "KINDS",
    "MAX_DIMENSIONS",
    "SKETCH_SIZE",
    "Form",
    "RunningMean",
    "Schema",
    "Weights",
    "cast",
    "digest",
    "distance",
    "distances",
    "load",
    "mean_of_stack",
    "mismatch",
    "n_bytes",
    "non_finite",
    "quantize",
    "row",
    "save",
    "schema",
    "size_of",
    "sketch",
]
