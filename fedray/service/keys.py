"""API keys: a file with a line for each client, its id and a hash of its secret.

A secret is 256 random bits, which no dictionary holds, so one SHA-256 keeps it as well
as a slow hash would; and a slow hash before every call would let strangers keep the
service busy.
"""

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from fedray.errors import ConfigError

CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LINE = re.compile(rf"({CLIENT.pattern}) sha256:([0-9a-f]{{64}})")
HEAD = "# fedray API keys: client and hash of its secret; add more with fedray keys\n"


def add(path: str | Path, client: str | None = None) -> tuple[str, str]:
    """Make a client's secret, keep its hash, and give (client, secret).

    Raises
    ------
    ConfigError
        If the client is there already, has no proper name, or the file cannot be used.
    """
    path = Path(path).expanduser()
    client = client or f"client-{secrets.token_hex(8)}"
    if not CLIENT.fullmatch(client):
        raise ConfigError([f"client {client!r} must match {CLIENT.pattern}"])
    known = read(path) if path.exists() else {}
    if client in known:
        raise ConfigError([f"client {client!r} has a key in {path} already"])
    secret = secrets.token_urlsafe(32)
    _write(path, known | {client: _hash(secret)})
    return client, secret


def remove(path: str | Path, client: str) -> None:
    """Take a client's key away.

    Raises
    ------
    ConfigError
        If it has none.
    """
    path = Path(path).expanduser()
    known = read(path)
    if client not in known:
        raise ConfigError([f"no client {client!r} in {path}; it has {sorted(known)}"])
    _write(path, {name: own for name, own in known.items() if name != client})


def read(path: str | Path) -> dict[str, str]:
    """Hashes by client.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds anything else.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError([f"cannot read keys {path}: {error}"]) from None
    known = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line.strip())
        if not found:
            needed = "a client and sha256:<hash>, as `fedray keys add` writes it"
            raise ConfigError([f"keys {path} line {number} is not {needed}"])
        known[found[1]] = found[2]
    return known


def matches(known: dict[str, str], client: str, secret: str) -> bool:
    """Is this the client's secret? Takes the same time whatever is wrong."""
    own = known.get(client, "0" * 64)
    return hmac.compare_digest(own, _hash(secret)) and client in known


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, known: dict[str, str]) -> None:
    aside = path.with_name(path.name + ".part")
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(HEAD)
            file.writelines(f"{name} sha256:{own}\n" for name, own in known.items())
        os.replace(aside, path)
    except OSError as error:
        raise ConfigError([f"cannot write keys {path}: {error.strerror}"]) from None
