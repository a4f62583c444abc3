"""Digests of the files that a run began with, kept in its folder: inputs.json.

A resumed run promises the bits of an undisturbed one, which other code or another
initial model cannot give.
"""

import functools
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fedray import user_code
from fedray.checkpoint.run_folder import RunFolder, write_file
from fedray.config import FederationConfig, PartySpec
from fedray.errors import ConfigError, RunFolderError
from fedray.file_kinds import files_of_model
from fedray.untrusted_text import name_of_file

FILE = "inputs.json"
KEYS = (
    *("model_type", "architecture", "model_file", "data_handler", "loss"),
    *("metrics", "distill"),
)
# keys of names, or else of code
NAMES = ("model_type", "data_handler", "loss", "architecture", "metrics")
DATA_KEYS = ("distill_data",)  # other data is reported, other code or models refused
REMEDY = (
    "Restore it, or begin a new run: another folder with --run-dir, or another name=..."
)


@dataclass(frozen=True)
class RunInputs:
    """What a run began with.

    run_id : no other run has it; parties keep their own state under it.
    digests : sha256 in hex, by what it is of: "architecture mlp.py".
    first_round : the first that was trained under these digests: 1 unless an earlier
        fedray, which kept none, began the run.
    changed_data : of `digests`, data that is not what the run began with.
    changed_rates : what is another learning rate from here on, a sentence each.
    """

    run_id: str
    digests: dict[str, str]
    first_round: int = 1
    changed_data: list[str] = field(default_factory=list)
    changed_rates: list[str] = field(default_factory=list)


def digest_inputs(config: FederationConfig) -> dict[str, str]:
    """Digests of the code, models and data of a config that this process reads.

    Raises
    ------
    ConfigError
        If a file cannot be read.
    """
    read = functools.cache(_digest_files)  # thousands of parties may name one file
    digests = _digests_at(config, (*KEYS, *DATA_KEYS), "", read)
    for party in config.parties:
        digests |= _digests_at(party, KEYS, f" of party {party.name}", read)
    return digests


def digest_party_inputs(party: PartySpec) -> dict[str, str]:
    """Digests of a party's own code and model."""
    return _digests_at(party, KEYS, f" of party {party.name}", _digest_files)


def keep_inputs(folder: RunFolder, digests: Mapping[str, str]) -> RunInputs:
    """Compare with what the run in a folder began with; keep what is new.

    Raises
    ------
    RunFolderError
        If code or a model is another, or the folder cannot be written.
    """
    before = _read(folder.path)
    if before is None or not folder.is_started():
        name = name_of_file(folder.path.name)
        run_id = f"{name}-{secrets.token_hex(16)}"  # 128 bits: noise is bound to it
        first_round = folder.last_saved_round() + 1
        inputs = RunInputs(run_id, dict(digests), first_round)
        _write(folder.path, inputs)
        return inputs
    earlier = before.digests
    changed = [
        name for name in digests if earlier.get(name) not in (None, digests[name])
    ]
    refused = [name for name in changed if not name.startswith(DATA_KEYS)]
    if refused:
        are = "is not what it was" if len(refused) == 1 else "are not what they were"
        reason = f"cannot go on: {', '.join(refused)} {are} when the run began"
        raise RunFolderError(str(folder.path), reason, REMEDY)
    inputs = RunInputs(
        before.run_id, {**digests, **earlier}, before.first_round, changed
    )
    if inputs.digests != earlier:
        _write(folder.path, inputs)
    return inputs


def earlier_digests(path: Path) -> dict[str, str]:
    """What the run in a folder began with; {} where there is none.

    Raises
    ------
    RunFolderError
        If its file is damaged.
    """
    inputs = _read(path)
    return inputs.digests if inputs else {}


def read_run_id(path: Path) -> str:
    """The id under which parties keep their own state; empty where there is none.

    Raises
    ------
    RunFolderError
        If its file is damaged.
    """
    inputs = _read(path)
    return inputs.run_id if inputs else ""


def replace_run_id(path: Path, run_id: str) -> None:
    """Give the run in a folder another id, of a run of its own.

    Raises
    ------
    RunFolderError
        If the folder cannot be written.
    """
    inputs = _read(path)
    if inputs is not None:
        _write(path, replace(inputs, run_id=run_id))


def add_inputs(path: Path, digests: Mapping[str, str]) -> None:
    """Keep digests of what a party that joins brings with it.

    Raises
    ------
    RunFolderError
        If the folder cannot be written.
    """
    inputs = _read(path)
    if inputs is not None and digests:
        together = {**inputs.digests, **digests}
        _write(path, RunInputs(inputs.run_id, together, inputs.first_round))


def _digests_at(
    settings: FederationConfig | PartySpec,
    keys: Iterable[str],
    of_whom: str,
    read: Callable[[str, str], dict[str, str]],
) -> dict[str, str]:
    digests: dict[str, str] = {}
    for key in keys:
        value = getattr(settings, key, None)
        for one in value if isinstance(value, tuple) else filter(None, [value]):
            if key not in NAMES or user_code.is_source(one):
                files = read(key, one).items()
                digests |= {f"{key} {file}{of_whom}": digest for file, digest in files}
    return digests


def _digest_files(key: str, path: str) -> dict[str, str]:
    """Digests of the file that a config key names, and of files that it imports."""
    if not user_code.is_source(path):
        try:
            return {file.name: _digest(file) for file in files_of_model(Path(path))}
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError([f"cannot read {key} {path}: {why}"]) from None
    source = user_code.read(path, key)
    name = os.path.basename(source.file)
    modules = " ".join(imported.module for imported in source.imports)
    digests = {name: _sha256(f"{source.text}\0{modules}")}
    for imported in source.imports:
        file = f"{source.path_of(imported)} (imported by {name})"
        digests[file] = _sha256(imported.text)
    return digests


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> RunInputs | None:
    try:
        text = (path / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None  # a new run, or one of an earlier fedray
    except OSError as error:
        reason = f"its {FILE} cannot be read: {error.strerror}"
        raise RunFolderError(str(path), reason) from None
    try:
        return RunInputs(**json.loads(text))
    except (ValueError, TypeError):
        reason = f"its {FILE} is damaged, so code and models cannot be compared"
        remedy = f"Delete {path / FILE} to go on without comparing"
        raise RunFolderError(str(path), reason, remedy) from None


def _write(path: Path, inputs: RunInputs) -> None:
    plain = asdict(inputs)
    del plain["changed_data"], plain["changed_rates"]
    write_file(path, FILE, json.dumps(plain, indent=1) + "\n")
