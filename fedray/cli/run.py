"""``fedray run``: runs a federation from a config to its global model."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from fedray.config import FederationConfig, read_overrides
from fedray.errors import ConfigError
from fedray.progress_display import ProgressDisplay

if TYPE_CHECKING:
    from fedray.federation.run import Result


def add(commands: Any) -> None:
    """Add the command to the parser."""
    run = commands.add_parser("run", help="run a federation")
    add_config(run)
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


def add_config(command: argparse.ArgumentParser) -> None:
    """Add the arguments of a config file and of settings that override it."""
    command.add_argument("config", metavar="CONFIG", help="a YAML file of settings")
    command.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that override the file's",
    )


def config_of(arguments: argparse.Namespace) -> FederationConfig:
    """The checked config of a command that has `add_config`.

    Raises
    ------
    ConfigError
        With every mistake of the file and of the words at once.
    """
    from fedray.federation import read_config

    overrides, problems = read_overrides(arguments.overrides)
    try:
        config = read_config(arguments.config, **overrides)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    return config


def _run(arguments: argparse.Namespace) -> None:
    from fedray import models
    from fedray.ensemble import workflow_of
    from fedray.federation import run

    config = config_of(arguments)
    parties = f"{config.num_parties} parties, {config.rounds} rounds"
    print(f"{config.name}: {config.fusion_algorithm} over {parties}")
    display = ProgressDisplay(
        config.rounds,
        is_scored=models.named(config.model_type).has_score,
        group_title=workflow_of(config).group_noun,
    )
    try:
        result = run(
            config,
            run_dir=arguments.run_dir,
            resume=arguments.resume,
            watch=display,
            dashboard=arguments.dashboard,
        )
    except BrokenPipeError:  # such as `fedray run config.yaml | head`
        reason = "stopped, since its output is not read any more"
        print(f"fedray: {reason}; go on with --resume", file=sys.stderr)
        raise
    _print_result(result)


def _print_result(result: "Result") -> None:
    if result.ensemble:
        print("together: loss {:.4f}, accuracy {:.4f}".format(*result.ensemble))
    for model in result.models.values():
        print(f"model    {model}")
    print(f"history  {result.folder / 'history.jsonl'}")
    print(f"report   {result.report}")
