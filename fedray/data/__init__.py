"""Data handlers by name, and the partition of one data set into parties."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fedray.config import (
    DOCUMENT_MODELS,
    FederationConfig,
    describe_mechanisms,
    describe_unknown,
)
from fedray.data.anything import AnyData, load_anything
from fedray.data.base import (
    Handler,
    LazySamples,
    Samples,
    load_samples,
    read_npz,
    resolve_in_root,
    unmoved_in_root,
)
from fedray.data.custom import (
    argument_problems,
    has_survey,
    make_custom,
    read_custom,
)
from fedray.data.image_folder import ImageFolder
from fedray.data.images import Cifar10Keras, MnistKeras, MnistPytorch
from fedray.data.memory import InMemory, data_of_call, in_memory
from fedray.data.newsgroups import Newsgroups
from fedray.data.npz_arrays import Npz
from fedray.data.options import Origin, option_problems
from fedray.data.partition import (
    add_column,
    partition_by,
    partition_rows,
    partition_samples,
    partition_test,
    partition_train,
    to_labels,
)
from fedray.data.survey import (
    SurveyedHandler,
    complete_survey,
    is_surveyed,
    load_by_codes,
    needs_samples,
    own_survey,
    use_codes,
)
from fedray.data.tables import Csv, Parquet
from fedray.data.text import Document, Documents, tokenize
from fedray.data.text_lines import TextLines
from fedray.data.wikipedia import Wikipedia
from fedray.errors import ConfigError
from fedray.survey import DataCodes, DataSurvey, Moments, ValueCounts
from fedray.user_code import IN_MEMORY, Source, is_in_memory, is_source

__all__ = [
    "HANDLERS",
    "TEXT_HANDLERS",
    "AnyData",
    "Cifar10Keras",
    "Csv",
    "DataCodes",
    "DataSurvey",
    "Document",
    "Documents",
    "Handler",
    "HandlerSource",
    "ImageFolder",
    "InMemory",
    "LazySamples",
    "MnistKeras",
    "MnistPytorch",
    "Moments",
    "Newsgroups",
    "Npz",
    "Origin",
    "Parquet",
    "Samples",
    "SurveyedHandler",
    "TextLines",
    "ValueCounts",
    "Wikipedia",
    "add_column",
    "complete_partition",
    "complete_survey",
    "config_problems",
    "in_memory",
    "is_surveyed",
    "load",
    "load_as_given",
    "load_by_codes",
    "load_samples",
    "make",
    "named",
    "needs_codes",
    "needs_samples",
    "own_survey",
    "partition_by",
    "partition_rows",
    "partition_samples",
    "partition_test",
    "partition_train",
    "problems",
    "read_npz",
    "resolve_in_root",
    "to_labels",
    "tokenize",
    "unmoved_in_root",
    "without_share",
]

# for model_type: doc2vec
TEXT_HANDLERS: dict[str, Callable[..., Handler]] = {
    "20_newsgroup": Newsgroups,
    "wikipedia": Wikipedia,
}
HANDLERS: dict[str, Callable[..., Handler]] = {
    "cifar10_keras": Cifar10Keras,
    "csv": Csv,
    "image_folder": ImageFolder,
    "mnist_keras": MnistKeras,
    "mnist_pytorch": MnistPytorch,
    "npz": Npz,
    "parquet": Parquet,
    "text_lines": TextLines,
    **TEXT_HANDLERS,
}

MAX_PARTIES = 100_000  # that the values of a column make
NO_ARGS: Mapping[str, Any] = MappingProxyType({})
NO_ORIGIN = Origin()

# a name of HANDLERS, code that travels to the party, or data that does
HandlerSource = str | Source | InMemory


def problems(
    data_handler: str,
    model_type: str,
    args: Mapping[str, Any] = NO_ARGS,
    find: Callable[[str], HandlerSource] | None = None,
) -> list[str]:
    """What is wrong with a data_handler and its data_args; no code of it is run.

    find : remembers what it has found; None: `named`.
    """
    try:
        source = (find or named)(data_handler)
    except ConfigError as error:
        return error.problems
    is_text = model_type in DOCUMENT_MODELS
    is_known = data_handler in HANDLERS and not is_source(model_type)
    if is_known and is_text != (data_handler in TEXT_HANDLERS):
        others = set(HANDLERS) - set(TEXT_HANDLERS)
        fitting = sorted(TEXT_HANDLERS if is_text else others)
        advice = f"take one of {fitting} or your own file.py:ClassName"
        return [f"data_handler {data_handler} is not for {model_type}; {advice}"]
    if isinstance(source, InMemory):
        return [f"data_args {n!r}: data in memory takes none" for n in args]
    if isinstance(source, Source):
        return [f"data_args: {one}" for one in argument_problems(source, args)]
    options = getattr(HANDLERS[source], "options_class", None)
    if options is None:
        return [f"data_handler {source} takes no data_args {n!r}" for n in args]
    return [f"data_args of {source}: {one}" for one in option_problems(options, args)]


def config_problems(config: FederationConfig) -> list[str]:
    """What is wrong with all data handlers of a config and their data_args."""
    mistakes, shared = [], config.data_args
    find = functools.cache(named)  # thousands of parties may name one file
    for handler in config.handlers():
        mistakes += problems(handler, config.model_type, shared, find)
    for place, party in enumerate(config.parties):
        if party.data_args:
            handler, args = config.handler_of(place), config.data_args_of(place)
            own = problems(handler, config.model_type, args, find)
            own = [one for one in own if one not in mistakes]
            mistakes += [f"party {party.name!r}: {one}" for one in own]
    mistakes += _privacy_problems(config)
    return list(dict.fromkeys(mistakes))


def _privacy_problems(config: FederationConfig) -> list[str]:
    """Options of data handlers that go by all parties' data, where noise hides it."""
    mechanisms = describe_mechanisms(config.privacy_mechanisms)
    options = [config.data_args, *(party.data_args or {} for party in config.parties)]
    if mechanisms and any(args.get("missing") == "mean" for args in options):
        return [
            f"data_args.missing: mean does not go with {mechanisms}: means of the "
            "parties' data would leave them without noise; give a number"
        ]
    return []


def named(data_handler: str, source: str = "") -> HandlerSource:
    """Find a handler by name or ``file.py:ClassName``; what parties are sent of it.

    source : what it is to read; of data in memory nothing else is sent.

    Raises
    ------
    ConfigError
        If it does not exist or cannot be used.
    """
    if is_in_memory(source):
        return data_of_call().only(source)
    if data_handler == IN_MEMORY:
        return data_of_call()
    if is_source(data_handler):
        return read_custom(data_handler)
    _find(data_handler)
    return data_handler


def needs_codes(handler: HandlerSource) -> bool:
    """Whether data read by a handler depend on a survey; no code of it is run."""
    if isinstance(handler, InMemory):
        return False
    if not isinstance(handler, Source):
        return is_surveyed(_find(handler))
    surveyed = filter(is_surveyed, HANDLERS.values())
    return has_survey(handler, {one.__name__ for one in surveyed})


def make(
    handler: HandlerSource,
    path: str,
    args: Mapping[str, Any] = NO_ARGS,
    origin: Origin = NO_ORIGIN,
) -> Handler:
    """Make the handler of a party's data; run where the data is.

    args : the party's data_args.
    origin : what ready handlers with options are also told.
    """
    if isinstance(handler, InMemory):
        return handler.open(path)
    if isinstance(handler, Source):
        return make_custom(handler, path, args)
    kind: Any = _find(handler)
    if hasattr(kind, "options_class"):
        return kind(path, origin=origin, **args)
    return kind(path, **args)


def without_share(handler: str, args: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options by which a ready handler takes none of the samples for tests."""
    has_share = hasattr(HANDLERS.get(handler), "options_class")
    return {**args, "test": 0} if has_share else args


def load(
    handler: HandlerSource,
    path: str,
    args: Mapping[str, Any] = NO_ARGS,
    origin: Origin = NO_ORIGIN,
    codes: DataCodes | None = None,
) -> Samples | LazySamples | Documents:
    """Make the handler and load its samples, checked; run where the data is.

    codes : that all parties share; None: of these data alone, where codes are needed.

    Raises
    ------
    DataError
        If the samples cannot be used. What a custom class raises is not caught.
    """
    reader = make(handler, path, args, origin)
    samples = load_by_codes(reader, path, codes)
    return add_column(samples, reader, path, origin.by) if origin.by else samples


def load_as_given(
    handler: HandlerSource,
    path: str,
    args: Mapping[str, Any] = NO_ARGS,
    origin: Origin = NO_ORIGIN,
    codes: DataCodes | None = None,
) -> AnyData:
    """Make the handler and take what it gives, for models that take anything.

    codes : as `load` has them.

    Raises
    ------
    DataError
        If there is nothing, or it cannot be counted.
    """
    own = make(handler, path, args, origin)
    use_codes(own, path, codes)
    return load_anything(own, path)


def complete_partition(config: FederationConfig) -> FederationConfig:
    """The config with the values of `partition.by`, which are its parties.

    Reads that column of the data set, which every node can read.

    Raises
    ------
    ConfigError
        If the handler has no columns, or there are other parties than `num_parties`.
    DataError
        If it cannot be read.
    """
    partition = config.partition
    if partition is None or not partition.by or partition.values:
        return config
    kind = HANDLERS.get(config.data_handler)
    if not hasattr(kind, "get_values"):
        able = [name for name, one in HANDLERS.items() if hasattr(one, "get_values")]
        needed = "or your own that has get_column(), with partition.values"
        problem = (
            f"partition.by: {partition.by} goes with data_handler {able}, {needed}"
        )
        raise ConfigError([problem])
    handler: Any = make(config.data_handler, partition.source, config.data_args)
    values = tuple(handler.get_values(partition.by))
    if len(values) > MAX_PARTIES:
        got = f"partition.by: {partition.by} has {len(values):,} different values"
        raise ConfigError([f"{got}, and each is a party: at most {MAX_PARTIES:,}"])
    return config.with_changes(partition=partition.with_changes(values=values))


def _find(name: str) -> Callable[..., Handler]:
    if name not in HANDLERS:
        raise ConfigError([describe_unknown("data_handler", name, HANDLERS)])
    return HANDLERS[name]
