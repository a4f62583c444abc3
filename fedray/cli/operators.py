"""``fedray serve``, ``keys``, ``grafana``: REST service, its API keys, a dashboard."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from fedray.errors import ConfigError
from fedray.service.options import COUNT, PATH, Option, options_of
from fedray.service.settings import Settings

if TYPE_CHECKING:
    from fedray.edge_door import DoorSettings


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_serve(commands)
    _add_keys(commands)
    _add_grafana(commands)


def _add_serve(commands: Any) -> None:
    usage = "fedray serve [--host HOST] [--port PORT] [options]"
    serve = commands.add_parser("serve", help="start the REST service", usage=usage)
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)"
    )
    serve.add_argument(
        "--port", type=int, default=8000, help="port to listen at (default 8000)"
    )
    _add_door(serve)
    limits = serve.add_argument_group(
        "limits", "Each is also a variable: FEDRAY_MAX_OPEN is --max-open."
    )
    for one in options_of(Settings).values():
        group = limits if one.declared.scope else serve
        _add_option(group, one)
    serve.set_defaults(command=_serve)


def _add_door(serve: Any) -> None:
    """Add the flags of the edges' door."""
    group = serve.add_argument_group(
        "edges", "A listener of its own for `fedray edge`; without these there is none."
    )
    group.add_argument(
        "--edge-host",
        metavar="HOST",
        help="address at which edges call (default 127.0.0.1; others need TLS)",
    )
    group.add_argument(
        "--edge-port",
        type=int,
        metavar="PORT",
        help="port at which edges call (default 8443)",
    )
    group.add_argument("--tls-cert", metavar="FILE", help="its certificate chain, PEM")
    group.add_argument("--tls-key", metavar="FILE", help="the private key, PEM")


def _add_option(group: Any, one: Option) -> None:
    """Add the flag of one setting; its text is read by `Settings`."""
    if one.kind is bool:
        group.add_argument(
            one.flag, action="store_const", const="true", help=one.declared.help
        )
        return
    scope = f"{one.declared.scope}: " if one.declared.scope else ""
    text = f"{scope}{one.declared.help} (default {one.default_text})"
    metavar = {PATH: "PATH", COUNT: "N"}.get(one.declared.unit, "AMOUNT")
    group.add_argument(one.flag, metavar=metavar, help=text)


def _serve(arguments: argparse.Namespace) -> None:
    flags = {name: getattr(arguments, name) for name in options_of(Settings)}
    settings = Settings.from_environment(flags)
    from fedray.service import serve

    serve(settings, arguments.host, arguments.port, _door(arguments))


def _door(arguments: argparse.Namespace) -> "DoorSettings | None":
    """Where edges call; None without any of its flags."""
    names = {"edge_host": "host", "edge_port": "port"}
    names |= {"tls_cert": "tls_cert", "tls_key": "tls_key"}
    values = {own: getattr(arguments, flag) for flag, own in names.items()}
    values = {name: value for name, value in values.items() if value is not None}
    if not values:
        return None
    if not {"host", "port"} & {*values}:
        problem = "--tls-cert and --tls-key are the edges' door's"
        raise ConfigError([f"{problem}: give --edge-host or --edge-port, too"])
    from fedray.edge_door import DoorSettings

    return DoorSettings(**values)


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
