"""Models, data and code that a call of `fedray.run` is given as objects.

`take_objects` parts them from the settings, in which names stand for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from fedray import data
from fedray.checkpoint import RunFolder, earlier_digests, lock_folder, runs_folder
from fedray.config import FederationConfig, PartitionSpec, PartySpec
from fedray.data.memory import PARTITION, AsGiven, WithColumn, path_of
from fedray.data.objects import (
    check_columns,
    is_array,
    is_frame,
    read_parts,
    take_column,
)
from fedray.data.partition import sort_values
from fedray.datasets import is_library_dataset
from fedray.errors import ConfigError, DataError, RunFolderError
from fedray.federation.live_code import (
    CODE_KEYS,
    PICKLER,
    code_settings,
    own_modules_by_value,
    pickle_code,
    pickling_errors,
)
from fedray.models.live import LiveModel, read_live
from fedray.placement import StoredObject
from fedray.user_code import IN_MEMORY, is_in_memory, is_source, remember

START_MODEL = "start_model"
MODEL_KEYS = ("model_file", "architecture", "model_type")
TEST = ".test samples"  # no party has a dot first
NAMES_TRIED = 10_000


@dataclass(frozen=True)
class Here:
    """Data of this process, as a function that gets it."""

    data: Any

    def __call__(self) -> Any:
        return self.data


@dataclass
class CallObjects:
    """The objects of a call, and the settings without them.

    settings : plain, as a config file has them.
    parts : train and test data by name: of a party, of the partition, of the tests.
    """

    settings: dict[str, Any]
    parts: dict[str, Any] = field(default_factory=dict)
    model: LiveModel | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the call has nothing that a config file could not have."""
        values = list(self.settings.values())
        values += [one for v in values if isinstance(v, list | tuple) for one in v]
        texts = [value for value in values if isinstance(value, str)]
        return (
            self.model is None and not any(map(is_in_memory, texts)) and not self.parts
        )

    @property
    def allows_missing(self) -> bool:
        """Whether NaN among inputs may be a value that something fills in later."""
        is_filled = self.settings.get("normalize") == "federated"
        return is_filled or self.settings.get("model_type") == "sklearn"

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the model's values, as `digest_inputs` gives those of files."""
        return {f"model {self.model.name}": self.model.digest} if self.model else {}

    @property
    def handler(self) -> data.InMemory:
        """A handler of the data, still in this process."""
        return data.InMemory({name: Here(part) for name, part in self.parts.items()})

    def store(self, handler: data.InMemory) -> None:
        """Put all data into Ray's object store, from where actors take their own.

        Raises
        ------
        ConfigError
            Naming what cannot be pickled.
        """
        if not self.parts:
            return
        with own_modules_by_value():
            for name, part in self.parts.items():
                with pickling_errors(f"data {name}", part):
                    handler.parts[name] = StoredObject(ray.put(part))

    def write_start_model(self, path: Path, resume: bool) -> Path | None:
        """Write the initial model into the run's folder, unless the run has begun.

        Returns the file, None if there was no such model.

        Raises
        ------
        RunFolderError
            If a run that goes on began with another model.
        """
        if self.model is None or not self.model.suffix:
            return None
        file = path / f"{START_MODEL}{self.model.suffix}"
        with lock_folder(path):
            is_begun = RunFolder(path).is_started()
            if is_begun and resume:
                self._compare_start_model(path, file)
            elif not is_begun:
                self.model.write(file)
        return file

    def _compare_start_model(self, path: Path, file: Path) -> None:
        before = earlier_digests(path)
        changed = [k for k, v in self.digests.items() if before.get(k, v) != v]
        if changed:
            reason = f"cannot go on: {changed[0]} has other values than the run began"
            remedy = (
                f"Load them from {file}, or seed the model before it is made; or begin "
                "a new run: another run_dir or name"
            )
            raise RunFolderError(str(path), f"{reason} with", remedy)


def take_objects(
    config: FederationConfig | Mapping[str, Any] | str | Path | None,
    overrides: Mapping[str, Any],
) -> CallObjects:
    """Part the objects of a call from its settings.

    Raises
    ------
    ConfigError
        With every object that cannot be used.
    """
    values = {**config, **overrides} if isinstance(config, Mapping) else {**overrides}
    call, mistakes = CallObjects(values), list[str]()
    explicit = config.explicit_values() if isinstance(config, FederationConfig) else {}
    steps = [
        lambda: _take_code(values),
        lambda: _take_model(call, {**explicit, **values}),
        lambda: _take_data(call),
    ]
    for step in steps:
        try:
            step()
        except ConfigError as error:
            mistakes += error.problems
        except DataError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes)
    return call


def free_name(resume: bool) -> str:
    """Name for a run that nobody has named: "federation", "federation-2"...

    The first of them that holds no run; of one that goes on, the last that does.
    """
    last = "federation"
    for number in range(1, NAMES_TRIED):
        name = "federation" if number == 1 else f"federation-{number}"
        if not RunFolder(runs_folder() / name).is_started():
            return last if resume else name
        last = name
    return last


def _take_code(values: dict[str, Any]) -> None:
    """Replace classes and functions by what a config has in their place."""
    mistakes = []
    for key in CODE_KEYS:
        if key in values:
            try:
                settings = code_settings(key, values[key])
            except ConfigError as error:
                mistakes += error.problems
                del values[key]
                continue
            for name, value in settings.items():
                is_given = name != key and name in values
                if isinstance(value, dict) and is_given:
                    values[name] = {**value, **values[name]}
                elif not is_given:
                    values[name] = value
    if mistakes:
        raise ConfigError(mistakes)


def _take_model(call: CallObjects, explicit: Mapping[str, Any]) -> None:
    model = call.settings.pop("model", None)
    if model is None:
        return
    twice = [key for key in MODEL_KEYS if explicit.get(key) is not None]
    if twice:
        what = f"model is given, and {', '.join(twice)} too"
        raise ConfigError([f"{what}: keep one of them"])
    if isinstance(model, str | Path):
        call.settings["model_file"] = str(model)
        return
    with own_modules_by_value(), pickling_errors("model", model):
        model_type, live = read_live(model, PICKLER)
    call.model = live
    call.settings |= {"model_type": model_type, **live.settings}
    if live.suffix:
        call.settings["model_file"] = path_of(START_MODEL)  # until it is written
    if live.build is not None:
        code = pickle_code(live.build, "model", live.text)
        call.settings[live.code_key] = remember(replace(code, attribute=live.name))


def _take_data(call: CallObjects) -> None:
    values = call.settings
    if "test" in values:
        if values.get("test_data") is not None:
            raise ConfigError(["test and test_data are both given: keep one of them"])
        values["test_data"] = values.pop("test")
    if not isinstance(values.get("test_data"), str | Path | None):
        call.parts[TEST] = _one_part(call, "for tests", values["test_data"])
        values["test_data"] = path_of(TEST)
    _take_partition(call)
    _take_parties(call)


def _take_partition(call: CallObjects) -> None:
    partition = call.settings.get("partition")
    if not isinstance(partition, Mapping):
        if not isinstance(partition, str | None | PartitionSpec):
            got = f"partition is a {type(partition).__name__}"
            needed = 'a mapping is needed, such as {"source": (x, y)}'
            raise ConfigError([f"{got}: {needed}"])
        return
    source = partition.get("source")
    if not isinstance(source, str | Path | None):
        _refuse_reading(call.settings)
        call.settings["data_handler"] = IN_MEMORY
        who, by = "of the partition", partition.get("by")
        if by is None:
            call.parts[PARTITION] = read_parts(who, source, call.allows_missing)
        else:
            source, train, test = take_column(who, source, by)
            call.parts[PARTITION] = WithColumn(
                read_parts(who, source, call.allows_missing), train, test
            )
            values = sort_values({*train.tolist(), *test.tolist()})
            partition = {"values": values, **partition}
        source = path_of(PARTITION)
    plain = {} if source is None else {"source": str(source)}
    call.settings["partition"] = {**partition, **plain}


def _take_parties(call: CallObjects) -> None:
    parties = call.settings.get("parties")
    if is_frame(parties) or is_library_dataset(parties) or _is_x_and_y(parties):
        got = f"parties is the data of one party (a {type(parties).__name__})"
        needed = 'give them by name, {"a": data, "b": data}, or a partition of one'
        raise ConfigError([f"{got}: {needed} data set"])
    if isinstance(parties, list | tuple):  # of data alone, too
        parties = [
            party if _is_entry(party) else _party_of(f"party-{i}", party)
            for i, party in enumerate(parties)
        ]
    if isinstance(parties, Mapping):
        parties = [_party_of(name, value) for name, value in parties.items()]
    if not isinstance(parties, list | tuple):
        return
    entries = [party for party in parties if isinstance(party, Mapping)]
    plain = [_take_party(call, party) for party in parties]
    check_columns({str(party.get("name")): party.get("data") for party in entries})
    call.settings["parties"] = plain
    own = [
        party
        for party in plain
        if isinstance(party, dict) and is_in_memory(str(party.get("data")))
    ]
    if plain and len(own) == len(plain) and not _has_path_of_tests(call):
        _refuse_reading(call.settings)
        call.settings["data_handler"] = IN_MEMORY
    else:
        for party in own:
            _refuse_reading(party)
            party["data_handler"] = IN_MEMORY


def _is_x_and_y(parties: Any) -> bool:
    """Whether it is x or (x, y), not two parties of inputs alone, which are a list."""
    is_pair = isinstance(parties, tuple) and len(parties) == 2
    return is_array(parties) or (is_pair and all(map(is_array, parties)))


def _has_path_of_tests(call: CallObjects) -> bool:
    path = call.settings.get("test_data")
    return path is not None and not is_in_memory(str(path))


def _refuse_reading(settings: Mapping[str, Any]) -> None:
    """Refuse keys that say how files are read, where no data is in a file."""
    keys = [key for key in ("data_handler", "data_args") if settings.get(key)]
    if keys and settings.get("data_handler") != IN_MEMORY:
        got = f"{keys[0]} reads files, and all data here is given in memory"
        raise ConfigError([f"{got}: leave it out, or name each party's file"])


def _read_party(call: CallObjects, name: str, source: Any) -> Any:
    """Data of a party; of any form, DataFrames too, for a class of the user's own."""
    is_own = is_source(str(call.settings.get("model_type")))
    parts = source if isinstance(source, Mapping) else {"train": source}
    if is_own and "train" in parts and any(map(is_frame, parts.values())):
        return parts["train"], parts.get("test")
    try:
        return read_parts(f"of party {name}", source, call.allows_missing)
    except DataError:
        if source is None or not is_own:
            raise
        return AsGiven(source)


def _one_part(call: CallObjects, who: str, value: Any) -> tuple[Any, Any]:
    """The test samples of a call: all of what was given is for tests."""
    parts = [str(key) for key in value] if isinstance(value, Mapping) else []
    if not parts:
        train, test = read_parts(who, value, call.allows_missing)
        if test is None:
            return train, train
    got = f"a mapping with {parts}" if parts else "train and test data"
    raise DataError(who, got, "test data alone, such as (x, y)")


def _is_entry(party: Any) -> bool:
    """Whether one of a list of parties has a name, and is not its data alone."""
    return isinstance(party, PartySpec | str) or (
        isinstance(party, Mapping) and "name" in party
    )


def _party_of(name: Any, value: Any) -> dict[str, Any]:
    """One entry of a mapping of parties: its data, or its keys with `data` in it."""
    if isinstance(value, Mapping) and "data" in value:
        return {"name": str(name), **value}
    return {"name": str(name), "data": value}


def _take_party(call: CallObjects, party: Any) -> Any:
    if isinstance(party, PartySpec) or not isinstance(party, Mapping):
        return party
    party = dict(party)
    source, name = party.get("data"), str(party.get("name"))
    if "data" not in party:
        return party
    if isinstance(source, str | Path):
        return {**party, "data": str(source)}
    call.parts[name] = _read_party(call, name, source)
    return {**party, "data": path_of(name)}
