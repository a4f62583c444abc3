"""``fedray check``: what a run of this config would find, and what would stop it."""

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
    check = commands.add_parser("check", help="look whether a federation could run")
    add_config(check)
    check.add_argument("--json", action="store_true", help="all of it, for scripts")
    check.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    """FAILED if anything was found that a run would stop at."""
    from fedray.federation.check import check

    try:
        found = check(config_of(arguments)).to_json()
    except FedrayError as error:
        if not arguments.json:
            raise
        problems = getattr(error, "problems", [str(error)])
        found = {"ok": False, "problems": problems}
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(found)))
    return ExitCode.DONE if found["ok"] else ExitCode.FAILED


def _lines(found: dict[str, Any]) -> Iterator[str]:
    if model := found["model"]:
        n, size = f"{model['n_parameters']:,}", format_bytes(model["bytes"])
        yield f"model    {model['model_type']}, {n} trainable values, {size}"
    for node in found["nodes"]:
        yield f"node     {_node(node)}"
    for party in found["parties"][:N_SHOWN]:
        yield f"party    {_party(party)}"
    if len(found["parties"]) > N_SHOWN:
        yield f"         and {len(found['parties']) - N_SHOWN} more actors"
    if found["bytes_per_round"]:
        n_bytes = format_bytes(found["bytes_per_round"])
        yield f"moves    about {n_bytes} a round that fuses"
    for problem in found["problems"]:
        yield f"problem  {problem}"
    yield "ready to run" if found["ok"] else "not ready to run"


def _node(node: dict[str, Any]) -> str:
    labels = ", ".join(f"{k}: {v}" for k, v in node["labels"].items()) or "no label"
    cores = f"{node['cpus']:g} CPUs, {node['gpus']:g} GPUs"
    needed, size = format_bytes(node["memory_needed"]), format_bytes(node["memory"])
    memory = f"about {needed} of {size} needed"
    return f"{node['id'][:8]} {node['host']} ({labels}): {cores}, {memory}"


def _party(party: dict[str, Any]) -> str:
    where = f"{party['name']} on {party['node'][:8]} {party['host']}, {party['data']}"
    found = party["found"]
    if not found:
        return f"{where}: not ready"
    counts = f"{found['n_train']:,} train + {found['n_test']:,} test samples"
    many = f" of {party['n_parties']:,} parties" if party["n_parties"] > 1 else ""
    form = f" {found['samples']}" if found["samples"] else ""
    return f"{where}: {counts}{form}{many}"
