"""Data surveys: sums and values of the parties' data, and the codes made of them.

Before round 1 every party counts what its data holds. Surveys of all parties are
merged, and out of them come codes that all parties share: class numbers of label
names, numbers of categories, means and deviations. No sample leaves a party.
"""

from fedray.survey.codes import DataCodes
from fedray.survey.data_survey import (
    CATEGORY,
    EMPTY,
    MIN_COUNT,
    MIN_PARTIES,
    NUMBER,
    TEXT,
    DataSurvey,
    SurveyRequest,
    differences,
)
from fedray.survey.files import (
    NORMALIZATION,
    SavedSurvey,
    read_codes,
    read_survey,
    without_normalization,
    write_codes,
)
from fedray.survey.moments import SINGLE, Moments, ValueCounts

__all__ = [
    "CATEGORY",
    "EMPTY",
    "MIN_COUNT",
    "MIN_PARTIES",
    "NORMALIZATION",
    "NUMBER",
    "SINGLE",
    "TEXT",
    "DataCodes",
    "DataSurvey",
    "Moments",
    "SavedSurvey",
    "SurveyRequest",
    "ValueCounts",
    "differences",
    "read_codes",
    "read_survey",
    "without_normalization",
    "write_codes",
]
