"""What each member takes and gives: one array of samples serves them all."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedray.errors import DataError

FORMS = "members.json"


class Form(NamedTuple):
    """Shape of a sample as a member's data handler gives it, and how many classes."""

    sample: tuple[int, ...]
    n_classes: int


def fitted(x: np.ndarray, sample: tuple[int, ...] | None, who: str) -> np.ndarray:
    """The same samples in a member's own layout.

    Channels may come first or last, and one channel may be left out; of one channel
    the numbers may also come in a row. Nothing else has one meaning only.

    Parameters
    ----------
    x : (N, ...) samples.
    sample : shape of one as the member takes it; None: `x` as it is.

    Raises
    ------
    DataError
        Naming the member, if its samples are of another form.
    """
    own = x.shape[1:]
    if sample is None or own == sample:
        return x
    bare = tuple(n for n in sample if n != 1)
    is_row = len(own) == 1 or len(sample) == 1
    is_plane = max(len(bare), sum(n != 1 for n in own)) <= 2
    if tuple(n for n in own if n != 1) == bare or (
        is_row and is_plane and math.prod(own) == math.prod(sample)
    ):
        return x.reshape(len(x), *sample)
    if x.ndim == 4 and (own[1], own[2], own[0]) == sample:
        return np.moveaxis(x, 1, 3)
    if x.ndim == 4 and (own[2], own[0], own[1]) == sample:
        return np.moveaxis(x, 3, 1)
    raise DataError(f"for member {who}", f"samples {list(own)}", f"{list(sample)}")


def keep_forms(folder: Path, members: Mapping[str, Form]) -> None:
    """Note what members take in the run's folder; who is silent now stays noted."""
    kept = {**forms_of(folder), **members}
    aside = folder / f"{FORMS}.part"
    plain = {name: [list(form.sample), form.n_classes] for name, form in kept.items()}
    aside.write_text(json.dumps(plain) + "\n", encoding="utf-8")
    os.replace(aside, folder / FORMS)


def forms_of(folder: Path) -> dict[str, Form]:
    """What members take, as the run noted it; empty if it did not get so far."""
    try:
        kept = json.loads((folder / FORMS).read_text("utf-8"))
        return {name: Form(tuple(shape), n) for name, (shape, n) in kept.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # cut by a crash: joining again notes the same
