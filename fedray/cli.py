"""The command line: ``fedray run``, ``fedray split``, ``fedray fuse``."""

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from fedray.board import Board
from fedray.config import PartitionSpec, read_overrides
from fedray.errors import ConfigError, FedrayError, Stopped

STOPPED = 130  # as a shell tells of Ctrl-C


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 if all went well, 130 after a stop, else 1."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(settings) < len(rest) or (rest and arguments.command is not _run):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if settings:  # settings may also follow an option
        arguments.overrides += settings
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fedray").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` stops as Ctrl-C does
    try:
        arguments.command(arguments)
    except Stopped as stopped:
        print(f"fedray: {stopped}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("fedray: interrupted", file=sys.stderr)
        return STOPPED
    except FedrayError as error:
        print(f"fedray: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedray", description="Model fusion and federated learning on Ray."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a federation"))
    _add_split(commands.add_parser("split", help="cut a data set into party files"))
    _add_fuse(commands.add_parser("fuse", help="fuse saved models, no federation"))
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("config", metavar="CONFIG", help="a YAML file of settings")
    run.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings laid over the file"
    )
    run.add_argument(
        "--run-dir", help="folder of this run (default ~/.fedray/runs/<name>)"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint"
    )
    run.add_argument(
        "--dashboard", action="store_true", help="start Ray's dashboard, print its URL"
    )
    run.set_defaults(command=_run)


def _add_split(split: argparse.ArgumentParser) -> None:
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


def _add_fuse(fuse: argparse.ArgumentParser) -> None:
    fuse.add_argument("models", nargs="+", metavar="MODEL", help=".pt or .safetensors")
    fuse.add_argument("--algorithm", default="fedavg", help="fedavg or iter_avg")
    fuse.add_argument("--samples", help="training samples behind each, as 500,700")
    fuse.add_argument("--out", required=True, help=".pt or .safetensors")
    fuse.set_defaults(command=_fuse)


def _run(arguments: argparse.Namespace) -> None:
    from fedray.federation import read_config, run

    overrides, found = read_overrides(arguments.overrides)
    try:
        config = read_config(arguments.config, **overrides)
    except ConfigError as error:
        raise ConfigError(found + error.problems) from None
    if found:
        raise ConfigError(found)
    parties = f"{config.num_parties} parties, {config.rounds} rounds"
    print(f"{config.name}: {config.fusion_algorithm} over {parties}")
    result = run(
        config,
        run_dir=arguments.run_dir,
        resume=arguments.resume,
        watch=Board(config.rounds),
        dashboard=arguments.dashboard,
    )
    for model in result.models.values():
        print(f"model    {model}")
    print(f"history  {result.folder / 'history.jsonl'}")
    print(f"report   {result.report}")


def _split(arguments: argparse.Namespace) -> None:
    from fedray.data.split import split

    partition = PartitionSpec(
        arguments.source,
        arguments.samples,
        arguments.scheme,
        arguments.alpha,
        arguments.shards,
        arguments.replace,
    )
    out, n_parties = Path(arguments.out), arguments.parties
    for line in split(arguments.source, out, n_parties, partition, arguments.seed):
        print(line)


def _fuse(arguments: argparse.Namespace) -> None:
    from fedray.offline import fuse

    samples = arguments.samples.split(",") if arguments.samples else None
    files = [Path(model) for model in arguments.models]
    for line in fuse(files, arguments.algorithm, samples, Path(arguments.out)):
        print(line)
