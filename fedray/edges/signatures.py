"""Ed25519 signatures of edges: what a commit says is what the edge has sent."""

from fedray.errors import MissingExtra


def is_signed(public_key: bytes, signature: bytes, content: bytes) -> bool:
    """Whether a signature is of these bytes, by this key (32 bytes).

    Raises
    ------
    MissingExtra
        Without the package cryptography.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError:
        raise MissingExtra("edges", "privacy") from None
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True
