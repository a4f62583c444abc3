"""``fedray split`` and ``fedray fuse``: cut a data set, fuse saved model files."""

import argparse
from pathlib import Path
from typing import Any

from fedray.config import PartitionSpec, parse
from fedray.errors import ConfigError


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_split(commands)
    _add_fuse(commands)


def _add_split(commands: Any) -> None:
    split = commands.add_parser("split", help="cut a data set into party files")
    default = PartitionSpec()
    split.add_argument("--source", default="mnist", help="an npz file, or mnist")
    split.add_argument("--parties", type=int, default=2)
    split.add_argument("--samples", type=int, help="per party (default: all, shared)")
    split.add_argument("--scheme", default=default.scheme, help="iid|dirichlet|shards")
    split.add_argument("--alpha", type=float, default=default.alpha)
    split.add_argument("--shards", type=int, default=default.shards_per_party)
    split.add_argument("--replace", action="store_true", help="draw with replacement")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("--out", default=".", help="folder of data_party<i>.npz")
    split.set_defaults(command=_split)


def _split(arguments: argparse.Namespace) -> None:
    from fedray.data.split import split

    partition = {
        "samples_per_party": arguments.samples,
        "scheme": arguments.scheme,
        "alpha": arguments.alpha,
        "shards_per_party": arguments.shards,
        "replace": arguments.replace,
    }
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
    fuse = commands.add_parser("fuse", help="fuse saved models, no federation")
    fuse.add_argument(
        "models", nargs="+", metavar="MODEL", help=".pt, .safetensors, .keras or .h5"
    )
    fuse.add_argument(
        "--algorithm",
        default="fedavg",
        help="a rule that needs no rounds, as fedavg, iter_avg, median",
    )
    fuse.add_argument("--samples", help="training samples behind each, as 500,700")
    fuse.add_argument("--out", required=True, help=".pt, .keras or .safetensors")
    fuse.add_argument(
        "--n-hostile",
        type=int,
        help="hostile models that a robust rule has to withstand",
    )
    fuse.set_defaults(command=_fuse)


def _fuse(arguments: argparse.Namespace) -> None:
    from fedray.offline import fuse

    samples = arguments.samples.split(",") if arguments.samples else None
    files = [Path(model) for model in arguments.models]
    out, n_hostile = Path(arguments.out), arguments.n_hostile
    for line in fuse(files, arguments.algorithm, samples, out, n_hostile):
        print(line)
