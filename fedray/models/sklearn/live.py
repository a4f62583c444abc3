"""A scikit-learn estimator that a Python caller gives as it is."""

import hashlib
import pickle
from functools import partial
from typing import Any

from sklearn.base import clone

from fedray.models.live import LiveModel
from fedray.models.sklearn import files
from fedray.models.sklearn.build import flatten, is_fitted
from fedray.models.sklearn.plan import last_of


def read_live(model: Any, pickler: type[pickle.Pickler]) -> LiveModel:
    """An estimator or pipeline as the initial model of a run; it is only read.

    A fitted one is trained on from what it has learned.
    """
    fitted, unfitted = is_fitted(last_of(flatten(model))), clone(model)
    text = f"{type(model).__module__} {unfitted!r}"
    state = pickle.dumps(model) if fitted else text.encode()
    return LiveModel(
        name=type(model).__name__,
        suffix=".skops" if fitted else "",
        write=partial(files.write, model),
        build=None if fitted else partial(clone, unfitted),
        text=text,
        digest=hashlib.sha256(state).hexdigest(),
        settings={},
    )
