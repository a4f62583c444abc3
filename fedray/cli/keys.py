"""``fedray keys``: adds, removes and lists API keys of the REST service."""

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("keys", help="manage API keys of the REST service")
    parser.add_argument("action", choices=("add", "remove", "list"))
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("client", nargs="?", help="client id (add: default a new one)")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(command=_keys)


def _keys(arguments: argparse.Namespace) -> None:
    from fedray.service import auth

    file, client = arguments.file, arguments.client
    if arguments.action == "add":
        client, secret = auth.add_key(file, client)
        _print_secret(file, client, secret, arguments.json)
    elif arguments.action == "remove":
        auth.remove_key(file, client or "")
    elif arguments.json:
        print(json.dumps(list(auth.read_keys(file))))
    else:
        print("\n".join(auth.read_keys(file)))


def _print_secret(file: str, client: str, secret: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"client": client, "secret": secret}))
        return
    print(f"X-IBM-Client-Id      {client}")
    print(f"X-IBM-Client-Secret  {secret}")
    print(f"Keep the secret: {file} has only its hash.")
