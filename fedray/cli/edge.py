"""``fedray edge``: take part in a federation from outside its cluster, without Ray."""

import argparse
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray.cli.exit_codes import ExitCode
from fedray.config import read_overrides
from fedray.errors import ConfigError, describe_error

if TYPE_CHECKING:
    from fedray.edge import EdgeOptions, EdgePolicy
    from fedray.edge.work import PartyOptions

LOG = logging.getLogger("fedray")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s?([kmgt]?)b?", re.IGNORECASE)
MAX_INVITATION = 4 << 10  # bytes


def add(commands: Any) -> None:
    """Add the command to the parser."""
    edge = commands.add_parser(
        "edge", help="take part in a federation from outside its cluster, without Ray"
    )
    edge.set_defaults(command=_edge)
    _add_service(edge)
    _add_party(edge)
    _add_limits(edge)
    how = edge.add_mutually_exclusive_group()
    how.add_argument(
        "--once", action="store_true",
        help="end after one update, or when there is nothing to do",
    )  # fmt: skip
    how.add_argument(
        "--dry-run", action="store_true", help="list what would leave, and send nothing"
    )
    how.add_argument(
        "--leave", action="store_true",
        help="leave the run: the service erases what it has of this edge",
    )  # fmt: skip


def _add_service(edge: argparse.ArgumentParser) -> None:
    edge.add_argument(
        "--url", action="append", required=True, metavar="URL",
        help="https:// of the service; given again: another, if the first is away",
    )  # fmt: skip
    edge.add_argument(
        "--invitation-file", metavar="FILE",
        help="one invitation, - for standard input; needed until it has enrolled",
    )  # fmt: skip
    edge.add_argument(
        "--ca", type=Path, metavar="FILE",
        help="CA certificates (PEM) that the service is verified by; read at each "
        "connection, old and new may stand side by side (default: public ones)",
    )  # fmt: skip
    edge.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="folder for key, token and weights (default: one in ~/.fedray/edge)",
    )


def _add_party(edge: argparse.ArgumentParser) -> None:
    edge.add_argument("--data", required=True, help="path of the data")
    edge.add_argument(
        "--data-handler", required=True, metavar="HANDLER",
        help="how they are read: a handler's name, or file.py:ClassName",
    )  # fmt: skip
    edge.add_argument(
        "--data-args", metavar="MAPPING",
        help="options of the handler, such as '{target: price}'",
    )  # fmt: skip
    code = edge.add_mutually_exclusive_group()
    code.add_argument(
        "--architecture", metavar="FILE.PY:NAME",
        help="function that builds the model, if the run's is not of known layers",
    )  # fmt: skip
    code.add_argument(
        "--model-class", metavar="FILE.PY:NAME",
        help="class that is the model, if the run has one of its own",
    )  # fmt: skip
    edge.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu"
    )


def _add_limits(edge: argparse.ArgumentParser) -> None:
    edge.add_argument(
        "--policy", type=Path, metavar="FILE",
        help="what its owner allows (default: edge.yaml in the state folder)",
    )  # fmt: skip
    edge.add_argument(
        "--max-bandwidth", type=_size, metavar="BYTES",
        help="per second, of all that leaves and comes: 500k, 2M",
    )  # fmt: skip
    edge.add_argument(
        "--max-disk",
        type=_size,
        metavar="BYTES",
        help="for weights and updates: 500M, 20G",
    )
    edge.add_argument(
        "--when", default="", metavar="COMMAND",
        help="ask, train and send only while this shell command exits 0",
    )  # fmt: skip


def _size(text: str) -> int:
    match = SIZE.fullmatch(text.strip())
    n_bytes = int(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if n_bytes < 1:
        needed = "a number of bytes: 500000, 500k, 2M or 1G"
        raise argparse.ArgumentTypeError(f"{text!r} is not {needed}")
    return n_bytes


def _edge(arguments: argparse.Namespace) -> int:
    # as Ray gives an actor: more threads may sum in another order. Before torch is here
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from fedray.edge import Agent, EdgeEnded, StateFolder, describe_departures

    options = _options(arguments)
    if arguments.dry_run:
        for line in describe_departures(options.party, [*options.urls]):
            print(line)
        return ExitCode.DONE
    invitation = _read_invitation(arguments.invitation_file)
    _write_times()
    with StateFolder(_folder(arguments, invitation)) as state:
        policy = _policy(arguments, state.path)
        state.accept(invitation)
        try:
            agent = Agent(options, state, policy)
            agent.leave() if arguments.leave else agent.run()
        except EdgeEnded as end:
            if not end.is_done:
                raise
            LOG.info("%s", end)
        except KeyboardInterrupt:
            LOG.info("stopped; the same command goes on where it was")
            return ExitCode.STOPPED
    return ExitCode.DONE


def _write_times() -> None:
    """Begin each line of the log with the time."""
    for handler in logging.getLogger().handlers:
        form = "%(asctime)s %(message)s"
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))


def _folder(arguments: argparse.Namespace, invitation: str | None) -> Path:
    from fedray.edge.state import default_folder

    if arguments.state_dir is not None:
        return Path(arguments.state_dir).expanduser().absolute()
    return default_folder(invitation)


def _policy(arguments: argparse.Namespace, folder: Path) -> "EdgePolicy":
    from fedray.edge import EdgePolicy, read_policy
    from fedray.edge.policy import POLICY

    if arguments.policy is not None:
        return read_policy(arguments.policy.expanduser())
    own = folder / POLICY
    return read_policy(own) if own.exists() else EdgePolicy()


def _options(arguments: argparse.Namespace) -> "EdgeOptions":
    from fedray.edge import EdgeOptions, check_urls

    ca = arguments.ca and arguments.ca.expanduser()
    if ca is not None and not ca.is_file():
        raise ConfigError([f"--ca {ca}: there is no such file"])
    return EdgeOptions(
        tuple(check_urls(arguments.url)),
        _party(arguments),
        ca,
        arguments.max_bandwidth,
        arguments.max_disk,
        arguments.when.strip(),
        arguments.once,
    )


def _party(arguments: argparse.Namespace) -> "PartyOptions":
    """The data and code that the owner names; relative paths start here."""
    from fedray.config import read_party
    from fedray.edge.work import PartyOptions

    settings: dict[str, Any] = {}
    if arguments.data_args is not None:
        settings, problems = read_overrides([f"data_args={arguments.data_args}"])
        if problems or not isinstance(settings.get("data_args"), dict):
            needed = "--data-args takes a mapping, such as '{target: price}'"
            raise ConfigError([f"{needed}, not {arguments.data_args!r:.80}"])
    own = {"data": arguments.data, "data_handler": arguments.data_handler}
    party = read_party({"name": "edge", **own, **settings})
    handler, args = party.data_handler or "", party.data_args or {}
    code = _own_code(arguments)
    _check_data(party.data, handler, args, code if arguments.model_class else "")
    _check_device(arguments.device)
    return PartyOptions(
        party.data, handler, args, code, bool(arguments.model_class), arguments.device
    )


def _own_code(arguments: argparse.Namespace) -> str:
    """The file and name of the model's code, read once to see that it is there."""
    from fedray import user_code

    spec = arguments.architecture or arguments.model_class or ""
    if not spec:
        return ""
    what = "--model-class" if arguments.model_class else "--architecture"
    file, colon, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise ConfigError([f"{what} {spec}: file.py:name is needed"])
    code = f"{Path(file).expanduser().absolute()}{colon}{name}"
    user_code.read(code, what)
    return code


def _check_data(
    path: str, handler: str, args: dict[str, Any], model_class: str
) -> None:
    """Raise ConfigError for a handler, options or a path that cannot be."""
    from fedray import data
    from fedray.config.specs import is_uri
    from fedray.user_code import is_source

    problems = data.problems(handler, model_class or "pytorch", args)
    is_path = not is_source(handler) and not is_uri(path)
    if is_path and path != "mnist" and not Path(path).exists():
        problems.append(f"--data {path}: there is no such file or folder")
    if problems:
        raise ConfigError(problems)


def _check_device(device: str) -> None:
    if device == "cuda":
        import importlib

        torch: Any = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise ConfigError(["--device cuda: PyTorch finds no GPU here"])


def _read_invitation(file: str | None) -> str | None:
    """The text of the invitation in a file, or from standard input."""
    from fedray.edges.protocol import read_invitation

    if file is None:
        return None
    try:
        if file == "-":
            text = sys.stdin.read(MAX_INVITATION)
        else:
            with Path(file).expanduser().open(encoding="utf-8-sig") as opened:
                text = opened.read(MAX_INVITATION)
    except (OSError, UnicodeDecodeError) as error:
        why = describe_error(error) if isinstance(error, OSError) else "no text"
        raise ConfigError([f"--invitation-file {file}: {why}"]) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 1 or read_invitation(lines[0]) is None:
        got = "it has no invitation" if len(lines) < 2 else "it has several lines"
        needed = "one, as `fedray edges invite` prints it"
        raise ConfigError([f"--invitation-file {file}: {got}; needed is {needed}"])
    return lines[0]
