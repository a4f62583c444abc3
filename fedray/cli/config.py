"""``fedray config``: lists the config keys, explains one, prints a schema of them."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from fedray.config import Key, keys_of, reference


def add(commands: Any) -> None:
    """Add the command to the parser."""
    config = commands.add_parser("config", help="list config keys, or explain one")
    config.add_argument(
        "key",
        nargs="?",
        metavar="KEY",
        help="key to explain, such as partition.alpha (default: list all)",
    )
    form = config.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for scripts")
    form.add_argument(
        "--json-schema",
        action="store_true",
        help="print a JSON schema of configs, for editors",
    )
    form.add_argument(
        "--markdown",
        action="store_true",
        help="print all keys, as in docs/configuration.md",
    )
    config.set_defaults(command=_config)


def _config(arguments: argparse.Namespace) -> None:
    if arguments.json_schema:
        print(json.dumps(reference.json_schema(), indent=2))
    elif arguments.markdown:
        print(reference.markdown(), end="")
    elif arguments.json:
        topics = reference.topics().values()
        keys = [reference.facts(key) for topic in topics for key in topic]
        one = arguments.key and reference.facts(reference.key_named(arguments.key))
        print(json.dumps(one or keys, indent=2))
    elif arguments.key:
        print("\n".join(_explain(arguments.key)))
    else:
        print("\n".join(_list_keys()))


def _list_keys() -> Iterator[str]:
    """One line for each key, by topic; lines too long for a terminal are cut."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    for topic, keys in reference.topics().items():
        yield f"{topic}:"
        for key in keys:
            default = reference.default_text(key).partition(":")[0]
            line = f"  {key.name:<22} {default:<22} {key.setting.help}"
            yield line if len(line) <= width else f"{line[: width - 3]}..."
        yield ""
    yield "fedray config KEY explains one."


def _explain(name: str) -> Iterator[str]:
    """All that is declared of one key."""
    key = reference.key_named(name)
    unit = f", in {key.setting.unit}" if key.setting.unit else ""
    yield f"{name}: {key.setting.help}"
    yield f"  type     {reference.type_text(key)}{unit}"
    yield f"  default  {reference.default_text(key).removeprefix('default ')}"
    if allowed := reference.allowed_text(key):
        yield f"  allowed  {allowed}"
    if needs := reference.conditions_of(key):
        yield f"  applies  {needs}"
    yield f"  REST     {'may be set' if key.setting.rest else 'cannot be set'}"
    yield f"  resume   {_resume(key)}"
    if key.nested:
        yield "  keys"
        for inner in keys_of(key.nested).values():
            yield f"    {inner.name:<18} {inner.setting.help}"


def _resume(key: Key) -> str:
    return "may be changed" if key.setting.resume else "has to stay as it was"
