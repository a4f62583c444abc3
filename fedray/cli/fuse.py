"""``fedray fuse``: fuses saved models without a federation."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser."""
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
