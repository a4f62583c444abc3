"""``fedray check``: checks config, nodes, data and model without running."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from fedray.cli.exit_codes import ExitCode
from fedray.cli.run import add_config, config_of
from fedray.errors import FedrayError
from fedray.report import format_bytes

N_SHOWN = 50  # actors in the table; --json has all


def add(commands: Any) -> None:
    """Add the command to the parser."""
    check = commands.add_parser(
        "check", help="check config, nodes, data and model, without running"
    )
    add_config(check)
    check.add_argument(
        "--json", action="store_true", help="print one JSON object, for scripts"
    )
    check.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    """Give FAILED if there is a problem that a run would stop at."""
    from fedray.federation.check import check

    try:
        config = config_of(arguments)
        result = check(config).to_json() | {"notes": config.without_effect()}
    except FedrayError as error:
        if not arguments.json:
            raise
        problems = getattr(error, "problems", [str(error)])
        result = {"ok": False, "problems": problems}
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(_format_result(result)))
    return ExitCode.DONE if result["ok"] else ExitCode.FAILED


def _format_result(result: dict[str, Any]) -> Iterator[str]:
    if model := result["model"]:
        n, size = f"{model['n_parameters']:,}", format_bytes(model["bytes"])
        yield f"model    {model['model_type']}, {n} trainable values, {size}"
    for node in result["nodes"]:
        yield f"node     {_format_node(node)}"
    for party in result["parties"][:N_SHOWN]:
        yield f"party    {_format_party(party)}"
    if len(result["parties"]) > N_SHOWN:
        yield f"         and {len(result['parties']) - N_SHOWN} more actors"
    if result["bytes_per_round"]:
        n_bytes = format_bytes(result["bytes_per_round"])
        yield f"moves    about {n_bytes} a round that fuses"
    for note in result["notes"]:
        yield f"note     {note}"
    for problem in result["problems"]:
        yield f"problem  {problem}"
    yield "ready to run" if result["ok"] else "not ready to run"


def _format_node(node: dict[str, Any]) -> str:
    labels = ", ".join(f"{k}: {v}" for k, v in node["labels"].items()) or "no label"
    cores = f"{node['cpus']:g} CPUs, {node['gpus']:g} GPUs"
    needed, size = format_bytes(node["memory_needed"]), format_bytes(node["memory"])
    memory = f"about {needed} of {size} needed"
    return f"{node['id'][:8]} {node['host']} ({labels}): {cores}, {memory}"


def _format_party(party: dict[str, Any]) -> str:
    where = f"{party['name']} on {party['node'][:8]} {party['host']}, {party['data']}"
    probe = party["found"]
    if not probe:
        return f"{where}: not ready"
    counts = f"{probe['n_train']:,} train + {probe['n_test']:,} test samples"
    many = f" of {party['n_parties']:,} parties" if party["n_parties"] > 1 else ""
    form = f" {probe['samples']}" if probe["samples"] else ""
    return f"{where}: {counts}{form}{many}"
