"""``fedray serve``, ``keys``, ``grafana``: REST service, its API keys, a dashboard."""

import argparse
import json
from pathlib import Path
from typing import Any

from fedray.service.settings import Settings


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_serve(commands)
    _add_keys(commands)
    _add_grafana(commands)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="start the REST service")
    default = Settings()
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)"
    )
    serve.add_argument(
        "--port", type=int, default=8000, help="port to listen at (default 8000)"
    )
    serve.add_argument(
        "--root",
        default=default.root,
        help=f"folder of all federations (default {default.root})",
    )
    serve.add_argument(
        "--api-keys",
        metavar="FILE",
        help="file that `fedray keys` wrote (without: only this machine may call)",
    )
    serve.add_argument(
        "--data-root",
        metavar="FOLDER",
        help="folder below which clients may name data by data_path",
    )
    serve.add_argument(
        "--allow-custom-handlers",
        action="store_true",
        help="let clients upload data handlers, which are code that runs here",
    )
    serve.set_defaults(command=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    from fedray.service import serve

    settings = Settings(
        root=arguments.root,
        api_keys=_absolute(arguments.api_keys),
        data_root=_absolute(arguments.data_root),
        allow_custom_handlers=arguments.allow_custom_handlers,
    )
    serve(settings, arguments.host, arguments.port)


def _absolute(path: str | None) -> str | None:
    return path and str(Path(path).expanduser().absolute())


def _add_keys(commands: Any) -> None:
    parser = commands.add_parser("keys", help="manage API keys of the REST service")
    parser.add_argument("action", choices=("add", "remove", "list"), help="what to do")
    parser.add_argument("file", metavar="FILE", help="file of keys, for `fedray serve`")
    parser.add_argument(
        "client",
        nargs="?",
        metavar="CLIENT",
        help="id of a client; add makes a new one if there is none",
    )
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


def _add_grafana(commands: Any) -> None:
    grafana = commands.add_parser("grafana", help="print the Grafana dashboard's JSON")
    grafana.set_defaults(command=_grafana)


def _grafana(arguments: argparse.Namespace) -> None:
    from fedray.metrics import dashboard

    print(json.dumps(dashboard(), indent=2))
