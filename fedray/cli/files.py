"""``fedray split`` and ``fedray fuse``: cut a data set, fuse saved model files."""

import argparse
from pathlib import Path
from typing import Any

from fedray.config import Key, PartitionSpec, keys_of, parse
from fedray.config.declaration import conditions_of
from fedray.errors import ConfigError

PARTITION_KEYS = {  # by the option of `fedray split` that sets it
    "--samples": "samples_per_party",
    "--size-alpha": "size_alpha",
    "--scheme": "scheme",
    "--alpha": "alpha",
    "--shards": "shards_per_party",
    "--replace": "replace",
}


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_split(commands)
    _add_fuse(commands)


def _add_split(commands: Any) -> None:
    split = commands.add_parser("split", help="cut a data set into party files")
    split.add_argument(
        "--source",
        default="mnist",
        help="npz file with x_train, y_train, x_test, y_test, or the shipped mnist "
        "(default)",
    )
    split.add_argument(
        "--parties", type=int, default=2, help="number of parties (default 2)"
    )
    for option, key in PARTITION_KEYS.items():
        _add_option(split, option, keys_of(PartitionSpec)[key])
    split.add_argument(
        "--seed", type=int, default=0, help="seed of what is drawn (default 0)"
    )
    split.add_argument(
        "--out",
        default=".",
        help="folder for data_party0.npz, data_party1.npz, ... (default: this one)",
    )
    split.set_defaults(command=_split)


def _add_option(parser: argparse.ArgumentParser, option: str, key: Key) -> None:
    """Add an option for a key of `partition`, with its help and default."""
    condition = conditions_of(key)
    help = key.setting.full_help + (f"; only for {condition}" if condition else "")
    if key.type is bool:
        parser.add_argument(option, action="store_true", default=None, help=help)
        return
    kind = key.type if key.type in (int, float) else str
    words = f": {', '.join(key.choices)}" if key.choices else ""
    default = "" if key.default is None else f" (default {key.default})"
    text = f"{help}{words}{default}"
    parser.add_argument(option, type=kind, help=text)


def _split(arguments: argparse.Namespace) -> None:
    from fedray.data.split import split

    options = {o[2:].replace("-", "_"): key for o, key in PARTITION_KEYS.items()}
    values = {key: getattr(arguments, option) for option, key in options.items()}
    partition = {key: value for key, value in values.items() if value is not None}
    config, problems = parse(
        {
            "partition": partition,
            "num_parties": arguments.parties,
            "seed": arguments.seed,
            "architecture": "none",
        }
    )
    if problems or config.partition is None:
        raise ConfigError(problems)
    out, source, n_parties = Path(arguments.out), arguments.source, arguments.parties
    for line in split(source, out, n_parties, config.partition, arguments.seed):
        print(line)


def _add_fuse(commands: Any) -> None:
    fuse = commands.add_parser("fuse", help="fuse saved models without a federation")
    fuse.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model file: .pt, .safetensors, .keras, .h5 or .skops",
    )
    fuse.add_argument(
        "--algorithm",
        default="fedavg",
        help="rule that needs no rounds, such as iter_avg, median (default fedavg)",
    )
    fuse.add_argument(
        "--samples",
        metavar="N,N,...",
        help="training samples behind each model (default: all weigh the same)",
    )
    fuse.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="fused model file: .pt, .keras, .skops or .safetensors",
    )
    fuse.add_argument(
        "--n-hostile",
        type=int,
        help="number of hostile models that a robust rule has to withstand",
    )
    fuse.set_defaults(command=_fuse)


def _fuse(arguments: argparse.Namespace) -> None:
    from fedray.offline import fuse

    samples = arguments.samples.split(",") if arguments.samples else None
    files = [Path(model) for model in arguments.models]
    out, n_hostile = Path(arguments.out), arguments.n_hostile
    for line in fuse(files, arguments.algorithm, samples, out, n_hostile):
        print(line)
