"""Surveys of a party's data before round 1, and the interface of handlers for them."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fedray.survey import DataCodes, DataSurvey


@runtime_checkable
class SurveyedHandler(Protocol):
    """A data handler that needs codes which all parties share.

    Before round 1 every party's `get_survey` is asked; the surveys of all parties are
    merged. Then, in each process that reads data, `use_codes` is called before
    `get_data`. A custom handler may have the two methods as well.
    """

    def get_survey(self, rows: np.ndarray | None = None) -> DataSurvey:
        """Columns, categories and label names of this party; moments of its numbers.

        rows : of the training samples that count, where a partition's party has only
            some; then test samples are left out. None: all, and values that only the
            test samples have exist, uncounted (`ValueCounts.of`).

        `DataSurvey.moments` may stay empty where `get_data` gives arrays whose columns
        do not depend on codes: they are then counted from those.
        """

    def use_codes(self, codes: DataCodes) -> None:
        """Read data by these codes: `codes.encode_labels`, `codes.encode`.

        Inputs are not standardised here: `fedray.data.load` does that for every
        handler (`codes.apply`), with the columns that moments name coming first in x.
        A missing number may be left as NaN where `codes.normalize`: it becomes the
        mean. Without it, `codes.mean(column)` is what stands for it.

        Raises
        ------
        DataError
            If this party's columns are not those of `codes.columns`.
        """

    def get_data(self) -> Any:
        """As of every `Handler`."""


def is_surveyed(handler: Callable[[str], Any]) -> bool:
    """Whether a handler's class has a survey."""
    return callable(getattr(handler, "get_survey", None))
