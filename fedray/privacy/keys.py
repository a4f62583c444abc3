"""Secrets of an aggregator or a party, and the keys that are derived from them.

A derived key is bound to a purpose and to everything that it is for, so that no two
uses share one. Nothing here logs a secret, and no error or repr shows one.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.errors import LedgerError, MissingExtra

RUN_KEY = "privacy.key"  # in a run's folder; deleted when the run is done
SECRET_BYTES = 32

Context = str | bytes | int


def encode_context(*context: Context) -> bytes:
    """Parts one after another, each with its kind and length: no two mean the same."""
    pieces = []
    for part in context:
        kind = type(part).__name__.encode()
        data = (
            part
            if isinstance(part, bytes)
            else str(part).encode("utf-8", "surrogatepass")
        )
        pieces += [kind, b":", str(len(data)).encode(), b":", data]
    return b"".join(pieces)


def derive_key(secret: bytes, purpose: str, *context: Context) -> bytes:
    """32 bytes by HKDF-SHA256 of a secret, a purpose and what the key is for.

    Source: RFC 5869.

    Raises
    ------
    MissingExtra
        If the package cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise MissingExtra("privacy", "privacy") from None
    info = encode_context(purpose, *context)
    return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(secret)


def keystream(key: bytes, nonce: bytes = bytes(16)) -> Any:
    """The ChaCha20 stream of a key (RFC 8439): an encryptor, to be fed with zeros.

    Raises
    ------
    MissingExtra
        If the package cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    except ImportError:
        raise MissingExtra("privacy", "privacy") from None
    return Cipher(algorithms.ChaCha20(key, nonce), None).encryptor()


def require_cryptography() -> None:
    """See that the package is there, before anything needs it.

    Raises
    ------
    MissingExtra
    """
    derive_key(bytes(SECRET_BYTES), "test")


def make_tag(secret: bytes, purpose: str, *context: Context) -> bytes:
    """32 bytes by HMAC-SHA256, which nobody without the secret can make or compare."""
    return hmac.digest(secret, encode_context(purpose, *context), hashlib.sha256)


def make_secret(path: Path) -> bytes:
    """Make a secret of 32 bytes from the operating system, on disk when this returns.

    The file can be read by its owner alone. It replaces one that is there.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    secret = os.urandom(SECRET_BYTES)
    write_secret(path, secret)
    return secret


def write_secret(path: Path, secret: bytes) -> None:
    """Keep a secret in a file for its owner alone; on disk when this returns.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    with durable_files.replace_file(path, 0o600) as aside:
        aside.write_bytes(secret)


def read_secret(path: Path) -> bytes | None:
    """A secret that `make_secret` wrote; None where there is none.

    Raises
    ------
    LedgerError
        If the file is no secret, or others may read it; what it holds is not shown.
    """
    try:
        if path.stat().st_mode & 0o077:
            reason, remedy = "others may read this secret", f"chmod 600 {path}"
            raise LedgerError(str(path), reason, remedy)
        secret = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(str(path), f"cannot be read: {error.strerror}") from None
    if len(secret) != SECRET_BYTES:
        reason = f"is damaged: {len(secret)} bytes, a secret has {SECRET_BYTES}"
        raise LedgerError(str(path), reason, "Restore it")
    return secret


def new_run_id() -> str:
    """128 random bits that name one run, in hex."""
    return secrets.token_hex(16)


class SecretKey:
    """A secret under which a ledger is written; no repr and no pickle shows it."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes):
        self._secret = secret

    def __repr__(self) -> str:
        return f"SecretKey(id {self.id})"

    def __reduce__(self) -> Any:
        raise TypeError("a secret key stays in its process: read it from its file")

    @property
    def id(self) -> str:
        """Names the key in public, 64 bits in hex; tells nothing about it."""
        return make_tag(self._secret, "key id").hex()[:16]

    def tag(self, purpose: str, *context: Context) -> str:
        """HMAC for one purpose, in hex: see `make_tag`."""
        return make_tag(self._secret, purpose, *context).hex()

    def derive(self, purpose: str, *context: Context) -> bytes:
        """A key for one purpose: see `derive_key`."""
        return derive_key(self._secret, purpose, *context)

    def authenticate(self, link: str) -> str:
        """HMAC of a ledger's link, in hex."""
        return make_tag(self._secret, "ledger", link).hex()

    def release_tag(self, binding: Mapping[str, Any]) -> bytes:
        """Names a release: HMAC of everything that makes it another one."""
        return make_tag(self._secret, "release", canonical(binding))

    def noise_key(self, tag: bytes) -> bytes:
        """The key of a release's noise: another for each tag."""
        return derive_key(self._secret, "noise", tag)

    def draw_key(self, *context: Context) -> bytes:
        """The key by which parties are drawn for a round."""
        return derive_key(self._secret, "draw", *context)


def release_binding(
    settings: Mapping[str, Any],
    place: tuple[str, str | None, int],
    reporters: list[str],
    weights: bytes,
    total: bytes,
) -> dict[str, Any]:
    """What the tag of a sum's release binds: all that could differ when it is repeated.

    Two sums under the same noise would give their difference away, so nothing that
    changes the sum, or what follows from it, may be missing here.

    settings : mechanism, sampling, noise multiplier, clip norm of this round, grid,
        dimension, expected reporters, band.
    place : run id, group, round.
    reporters : names of the parties in the sum, in config order.
    weights, total : `fedray.weights.digest` of the weights that were sent, and of the
        integers before noise, the clip count among them.
    """
    run, group, round = place
    return {
        "run": run,
        "group": group,
        "round": round,
        "weights": weights.hex(),
        "reporters": reporters,
        "settings": dict(settings),
        "total": total.hex(),
    }


def canonical(plain: Mapping[str, Any]) -> bytes:
    """Plain values as JSON that is the same for equal values."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")
