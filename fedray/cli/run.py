"""``fedray run`` and ``fedray check``: run a federation from a config, or check it."""

import argparse
import contextlib
import json
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedray.cli.exit_codes import ExitCode
from fedray.config import FederationConfig, read_overrides
from fedray.errors import (
    ConfigError,
    FedrayError,
    describe_error,
    format_count,
)
from fedray.observers import BackgroundObserver, Guard
from fedray.progress_display import ProgressDisplay
from fedray.report import comparison_lines, format_bytes, spread_lines
from fedray.survey import NORMALIZATION
from fedray.untrusted_text import decode_name

if TYPE_CHECKING:
    from fedray.federation.run import Result

N_SHOWN = 50  # actors in the table; --json has all


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    check = commands.add_parser(
        "check", help="check config, nodes, data and model, without running"
    )
    add_config(check)
    check.add_argument(
        "--json", action="store_true", help="print one JSON object, for scripts"
    )
    check.set_defaults(command=_check)
    run = commands.add_parser("run", help="run a federation")
    add_config(run)
    run.add_argument(
        "--run-dir", help="folder for the run's files (default ~/.fedray/runs/<name>)"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint"
    )
    run.add_argument(
        "--as-new-run",
        action="store_true",
        help="with --resume in a copy of a private run's folder: as a run of its own",
    )
    run.add_argument(
        "--dashboard",
        action="store_true",
        help="start Ray's dashboard and print its URL",
    )
    run.set_defaults(command=_run)


def add_config(command: argparse.ArgumentParser) -> None:
    """Add the arguments of a config file and of settings that override it."""
    command.add_argument("config", metavar="CONFIG", help="YAML file of settings")
    command.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="setting that overrides the file's, such as rounds=5",
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
    """Run a federation; nothing that happens to its terminal ends it."""
    from fedray import models
    from fedray.ensemble import workflow_of
    from fedray.federation import folder_of_run, run

    config = config_of(arguments)
    # the terminal may close before the end; Ray's own processes inherit this
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guard = Guard("standard output")
    name = folder_of_run(config, arguments.run_dir).name
    guard.call(_print_title, name, config)
    display = ProgressDisplay(
        config.rounds,
        is_scored=models.named(config.model_type).has_score,
        group_title=workflow_of(config).group_noun,
    )
    with BackgroundObserver(guard, lambda: contextlib.nullcontext(display)) as watch:
        result = run(
            config,
            run_dir=arguments.run_dir,
            resume=arguments.resume,
            watch=watch,
            dashboard=arguments.dashboard,
            as_new_run=arguments.as_new_run,
        )
    guard.call(_print_result, result)


def _print_title(name: str, config: FederationConfig) -> None:
    parties = format_count(config.num_parties or 0, "party", "parties")
    rounds = format_count(config.rounds, "round")
    title = f"{decode_name(name)}: {config.fusion_algorithm} over {parties}, {rounds}"
    print(title, flush=True)


def _print_result(result: "Result") -> None:
    if result.ensemble:
        print("together: loss {:.4f}, accuracy {:.4f}".format(*result.ensemble))
    by_party = [*spread_lines(result.history), *comparison_lines(result.comparison)]
    for line in by_party:
        print(line)
    for model in result.models.values():
        print(f"model    {model}")
    for best in result.best.values():
        print(f"best     {best}")
    if (codes := result.folder / NORMALIZATION).exists():
        print(f"codes    {codes}: predictions need it beside the model")
    print(f"history  {result.folder / 'history.jsonl'}")
    print(f"report   {result.report or 'not written'}", flush=True)


def _check(arguments: argparse.Namespace) -> int:
    """Give FAILED if there is a problem that a run would stop at."""
    from fedray.federation.check import check

    try:
        config = config_of(arguments)
        result = check(config).to_json()
    except (FedrayError, OSError) as error:
        if not arguments.json:
            raise
        problems = getattr(error, "problems", [describe_error(error)])
        result = {"ok": False, "problems": problems}
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(_format_result(result)))
    return ExitCode.DONE if result["ok"] else ExitCode.FAILED


def _format_result(result: dict[str, Any]) -> Iterator[str]:
    if model := result["model"]:
        n = format_count(model["n_parameters"], "trainable value")
        size = format_bytes(model["bytes"])
        frozen = f", {model['n_frozen']:,} frozen" if model["n_frozen"] else ""
        yield f"model    {model['model_type']}, {n}{frozen}, {size}"
    for code in result["code"]:
        imports = f", imports {', '.join(code['imports'])}" if code["imports"] else ""
        yield f"code     {code['code']}: {format_bytes(code['bytes'])}{imports}"
    for node in result["nodes"]:
        yield f"node     {_format_node(node)}"
    for party in result["parties"][:N_SHOWN]:
        yield f"party    {_format_party(party)}"
    if len(result["parties"]) > N_SHOWN:
        n_more = len(result["parties"]) - N_SHOWN
        yield f"         and {format_count(n_more, 'more actor')}"
    if result["bytes_per_round"]:
        n_bytes = format_bytes(result["bytes_per_round"])
        yield f"moves    about {n_bytes} a round that fuses"
    for spent in result.get("privacy", ()):
        yield from (f"privacy  {line}" for line in spent["lines"])
    for note in result["notes"]:
        yield f"note     {note}"
    for problem in result["problems"]:
        yield f"problem  {problem}"
    yield "ready to run" if result["ok"] else "not ready to run"


def _format_node(node: dict[str, Any]) -> str:
    labels = ", ".join(f"{k}: {v}" for k, v in node["labels"].items()) or "no label"
    cores = f"{format_count(node['cpus'], 'CPU')}, {format_count(node['gpus'], 'GPU')}"
    needed, size = format_bytes(node["memory_needed"]), format_bytes(node["memory"])
    memory = f"about {needed} of {size} needed"
    return f"{node['id'][:8]} {node['host']} ({labels}): {cores}, {memory}"


def _format_party(party: dict[str, Any]) -> str:
    where = f"{party['name']} on {party['node'][:8]} {party['host']}, {party['data']}"
    probe = party["found"]
    if not probe:
        return f"{where}: not ready"
    n_tests = format_count(probe["n_test"], "test sample")
    counts = f"{probe['n_train']:,} train + {n_tests}"
    many = f" of {party['n_parties']:,} parties" if party["n_parties"] > 1 else ""
    form = f" {probe['samples']}" if probe["samples"] else ""
    return f"{where}: {counts}{form}{many}"
