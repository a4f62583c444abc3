"""Keys of one attempt: identities, key agreement, derived keys, boxes, signatures.

Primitives are those of the package `cryptography`; what is here binds each key and
signature to its purpose, its attempt and its two parties.
"""

import os
from collections.abc import Callable, Iterable
from functools import cache
from types import SimpleNamespace
from typing import Any

from fedray.errors import MissingExtra, SecureSumError
from fedray.privacy.keys import derive_key, encode_context
from fedray.secure_sum.codec import KEY, SIGNATURE
from fedray.secure_sum.storage import Storage

IDENTITY = "identity.key"
LABEL = "fedray/secagg/1 "


@cache
def _library() -> Any:
    """Primitives of the package `cryptography`, imported when they are needed."""
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError:
        raise MissingExtra("secure_aggregation", "privacy") from None
    return SimpleNamespace(
        InvalidSignature=exceptions.InvalidSignature,
        InvalidTag=exceptions.InvalidTag,
        Ed25519PrivateKey=ed25519.Ed25519PrivateKey,
        Ed25519PublicKey=ed25519.Ed25519PublicKey,
        X25519PrivateKey=x25519.X25519PrivateKey,
        X25519PublicKey=x25519.X25519PublicKey,
        ChaCha20Poly1305=aead.ChaCha20Poly1305,
    )


class Identity:
    """A party's Ed25519 key, by which others know it; no repr or pickle shows it."""

    __slots__ = ("_key", "public")

    def __init__(self, secret: bytes):
        if len(secret) != KEY:
            got = f"{len(secret)} bytes"
            raise SecureSumError("a party's identity", got, f"{KEY}: restore its file")
        self._key = _library().Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({self.public.hex()})"

    def __reduce__(self) -> Any:
        raise TypeError("an identity stays in its process: read it from its file")

    def sign(self, purpose: str, *context: str | bytes | int) -> bytes:
        """64 bytes that only this identity can make, for this purpose and context."""
        return self._key.sign(encode_context(LABEL + purpose, *context))


def load_identity(storage: Storage) -> Identity:
    """The identity in this storage; made, and on disk, where there is none."""
    secret = storage.read(IDENTITY)
    if secret is None:
        secret = os.urandom(KEY)
        storage.write(IDENTITY, [secret])
    return Identity(secret)


def is_signed(
    identity: bytes, signature: bytes, purpose: str, *context: str | bytes | int
) -> bool:
    """Whether the owner of a public key made this signature."""
    try:
        key = _library().Ed25519PublicKey.from_public_bytes(identity)
        key.verify(signature, encode_context(LABEL + purpose, *context))
    except (_library().InvalidSignature, ValueError):
        return False
    return len(signature) == SIGNATURE


def new_secret() -> bytes:
    """32 bytes from the operating system: a private key of X25519, or a seed."""
    return os.urandom(KEY)


def public_key(secret: bytes) -> bytes:
    """The X25519 public key of a private one."""
    private = _library().X25519PrivateKey.from_private_bytes(secret)
    return private.public_key().public_bytes_raw()


def agreement(secret: bytes) -> Callable[[bytes], bytes]:
    """What the owner of a private key shares with others: X25519 by their public keys.

    The function that is returned raises SecureSumError for one of the few public keys
    that make the shared secret known to all.
    """
    read_public = _library().X25519PublicKey.from_public_bytes
    private = _library().X25519PrivateKey.from_private_bytes(secret)

    def agree(public: bytes) -> bytes:
        try:
            return private.exchange(read_public(public))
        except ValueError:
            got = "a public key of small order"
            raise SecureSumError("key agreement", got, "one of a private key") from None

    return agree


def box_key(shared: bytes, context: bytes, sender: int, recipient: int) -> bytes:
    """Key of the one box that a party sends another in an attempt."""
    return derive_key(shared, LABEL + "box", context, sender, recipient)


def pair_mask_key(
    shared: bytes, context: bytes, weights: bytes, pair: Iterable[int]
) -> bytes:
    """Key of the mask of two neighbours; both derive the same."""
    return derive_key(shared, LABEL + "pair", context, weights, *sorted(pair))


def own_mask_key(seed: bytes, context: bytes, weights: bytes, place: int) -> bytes:
    """Key of the mask that a party adds for itself."""
    return derive_key(seed, LABEL + "self", context, weights, place)


def seal(key: bytes, content: bytes, sender: int, recipient: int) -> bytes:
    """Encrypt the only message that this key is for (hence a nonce of zeros)."""
    parties = encode_context(sender, recipient)
    return _library().ChaCha20Poly1305(key).encrypt(bytes(12), content, parties)


def unseal(key: bytes, box: bytes, sender: int, recipient: int) -> bytes | None:
    """Decrypt; None if the box was not made with this key for these two."""
    try:
        parties = encode_context(sender, recipient)
        return _library().ChaCha20Poly1305(key).decrypt(bytes(12), box, parties)
    except _library().InvalidTag:
        return None


def is_usable(*public_keys: bytes) -> bool:
    """Whether X25519 public keys agree with others: those of small order do not."""
    agree = agreement(new_secret())
    try:
        return all(agree(public) for public in public_keys)
    except SecureSumError:
        return False
