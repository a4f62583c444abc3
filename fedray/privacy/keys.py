"""Secrets of an aggregator or a party, and the keys that are derived from them.

A derived key is bound to a purpose and to everything that it is for, so that no two
uses share one. Nothing here logs a secret, and no error or repr shows one.
"""

import hashlib
import hmac
import os
from pathlib import Path

from fedray import durable_files
from fedray.errors import MissingExtra

SECRET_BYTES = 32

Context = str | bytes | int


def encode_context(*context: Context) -> bytes:
    """Parts one after another, each with its kind and length: no two mean the same."""
    pieces = []
    for part in context:
        kind = type(part).__name__.encode()
        data = part if isinstance(part, bytes) else str(part).encode()
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
    with durable_files.replace_file(path, 0o600) as aside:
        aside.write_bytes(secret)
    return secret
