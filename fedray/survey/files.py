"""The file of a survey in a run's folder, beside its models: normalization.json."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedray import durable_files
from fedray.errors import RunFolderError
from fedray.survey.codes import DataCodes
from fedray.survey.data_survey import DataSurvey
from fedray.survey.moments import ValueCounts

NORMALIZATION = "normalization.json"


@dataclass(frozen=True, eq=False)
class SavedSurvey:
    """What a run found before round 1, as its folder holds it.

    run : the run's id.
    normalize : whether inputs are standardised by it.
    """

    survey: DataSurvey
    run: str = ""
    normalize: bool = False

    @property
    def codes(self) -> DataCodes:
        """What the run's parties read their data by, and predictions have to."""
        return self.survey.codes(self.normalize)

    def write(self, folder: Path) -> None:
        """Write the file, with a digest of what it holds.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        plain = {"normalize": self.normalize, "run": self.run, **self.survey.to_json()}
        text = json.dumps({"digest": _digest(plain), **plain}, indent=1)
        durable_files.write_text(folder / NORMALIZATION, f"{text}\n")


def read_survey(folder: Path) -> SavedSurvey:
    """Read the file of a run's folder.

    Raises
    ------
    RunFolderError
        If it is lost or altered: the model would be given other numbers.
    """
    try:
        saved = json.loads((folder / NORMALIZATION).read_text("utf-8"))
        if saved.pop("digest") != _digest(saved):
            raise ValueError("digest")
        survey = DataSurvey.from_json(saved)
        return SavedSurvey(survey, saved["run"], saved["normalize"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        reason = f"cannot go on, its {NORMALIZATION} is lost or altered: "
        reason += "samples would get other class numbers, codes or means"
        raise RunFolderError(str(folder), reason) from None


def read_codes(folder: Path, is_normalized: bool = False) -> DataCodes | None:
    """What a run's parties read their data by; None of a run without a survey.

    is_normalized : whether the run's config says that inputs are standardised.

    Raises
    ------
    RunFolderError
        If the file is altered, or missing where predictions need it.
    """
    if (folder / NORMALIZATION).exists():
        return read_survey(folder).codes
    if is_normalized:
        reason = f"its {NORMALIZATION} is missing: the model was trained on inputs "
        reason += "that were standardised by it, and predicts wrongly without"
        remedy = "Copy it from the run's folder to beside the model"
        raise RunFolderError(str(folder), reason, remedy)
    return None


def write_codes(folder: Path, codes: DataCodes) -> None:
    """Write the file for a model that is saved elsewhere; one that is there stays.

    How often labels and categories occurred is not in it.
    """
    if (folder / NORMALIZATION).exists():
        return
    categories = {
        name: ValueCounts.uncounted(names) for name, names in codes.categories.items()
    }
    labels = ValueCounts.uncounted(codes.labels) if codes.labels else None
    survey = DataSurvey(codes.columns, codes.moments, categories, labels=labels)
    SavedSurvey(survey, normalize=codes.normalize).write(folder)


def without_normalization(codes: DataCodes | None) -> DataCodes | None:
    """The same codes for data that are standardised later, by the model."""
    return codes and dataclasses.replace(codes, normalize=False)


def _digest(plain: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
