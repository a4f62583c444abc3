"""The model file that a config means by a folder, or by the name of a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.checkpoint.run_lock import runs_folder
from fedray.errors import RunFolderError
from fedray.file_kinds import INDEX

RUN = "config.yaml"  # in a run's folder
LAST, BEST = "global_model", "global_model_best"  # models of a run, without suffixes
# in folders of Hugging Face, the likeliest first
WEIGHTS = (f"model{INDEX}", "model.safetensors", "pytorch_model.bin")


def model_name(which: str, group: str | None = None) -> str:
    """Name without suffix of a run's last or best model, of a group if there are any.

    which : LAST or BEST.
    """
    return f"{which}-{group}" if group else which


def find_model_files(
    settings: Mapping[str, Any], beside: Path
) -> tuple[dict[str, Any], list[str]]:
    """Settings whose model_file is a file, where it was a folder or a run; mistakes.

    A member's own is looked for too.

    beside : folder from which relative paths start.
    """
    resolved, mistakes = dict(settings), list[str]()
    resolved |= _find(settings, beside, mistakes)
    parties = settings.get("parties")
    if isinstance(parties, list | tuple):
        resolved["parties"] = [
            {**party, **_find(party, beside, mistakes)}
            if isinstance(party, Mapping)
            else party
            for party in parties
        ]
    return resolved, mistakes


def _find(
    settings: Mapping[str, Any], beside: Path, mistakes: list[str]
) -> dict[str, str]:
    text = settings.get("model_file")
    if not isinstance(text, str) or not text or "\0" in text:
        return {}
    try:
        folder = beside / Path(text).expanduser()
        if not folder.exists() and Path(text).name == text:
            folder = runs_folder() / text
        if not folder.is_dir():
            return {}
    except (OSError, RuntimeError, RunFolderError):
        return {}  # that there is no such file is said elsewhere
    is_run = (folder / RUN).is_file()
    names = _names_of_run(folder) if is_run else WEIGHTS
    files = [folder / name for name in names if (folder / name).is_file()]
    if len(files) == 1 or (files and not is_run):
        return {"model_file": str(files[0])}
    mistakes.append(_mistake(text, folder, files))
    return {}


def _names_of_run(folder: Path) -> list[str]:
    """Global models of a finished run; of several groups each.

    Of a custom model the arrays, not what its own save() wrote beside them.
    """
    files = [
        f
        for f in folder.glob(f"{LAST}*")
        if f.suffix in (".pt", ".keras", ".npz") and not f.name.startswith(BEST)
    ]
    files.sort(key=lambda file: (file.stem, file.suffix != ".npz"), reverse=True)
    return sorted({file.stem: file.name for file in files}.values())


def _mistake(text: str, folder: Path, files: list[Path]) -> str:
    if not (folder / RUN).is_file():
        return (
            f"model_file {text} is a folder without {', '.join(WEIGHTS[:2])} or a run"
        )
    if files:
        some = ", ".join(map(str, files))
        return f"model_file {text} is a run with several models; give one of {some}"
    return (
        f"model_file {text} is a run without a global model yet: let it end (--resume)"
    )
