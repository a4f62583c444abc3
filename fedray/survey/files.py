"""The file of a survey in a run's folder, beside its models: normalization.json."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedray import durable_files
from fedray.errors import RunFolderError
from fedray.survey.codes import DataCodes
from fedray.survey.data_survey import DataSurvey

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


def read_codes(folder: Path) -> DataCodes | None:
    """What a run's parties read their data by; None of a run without a survey.

    Raises
    ------
    RunFolderError
        If the file is altered.
    """
    return read_survey(folder).codes if (folder / NORMALIZATION).exists() else None


def _digest(plain: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
