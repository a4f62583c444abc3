"""Certificates for servers under test: an authority, and localhost's, signed by it."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.faulty_proxy import Tls


@dataclass(frozen=True)
class Certificates:
    """Files: the authority's certificate, and a server's with its key."""

    ca: Path
    cert: Path
    key: Path

    def tls(self) -> Tls:
        """For a proxy between such a server and its clients."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(self.cert, self.key)
        return Tls(server, ssl.create_default_context(cafile=str(self.ca)))


def make_certificates(folder: Path, days: int = 30) -> Certificates:
    """Write them; for localhost and 127.0.0.1, from yesterday for so many days."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority, ours = _name("an authority of tests"), _name("localhost")
    ca = _builder(authority, authority, authority_key, days).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    own_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    ca = ca.add_extension(own_id, critical=False)
    places = [x509.DNSName("localhost"), x509.IPAddress(_loopback())]
    cert = _builder(ours, authority, key, days).add_extension(
        x509.SubjectAlternativeName(places), critical=False
    )
    its_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id)
    cert = cert.add_extension(its_id, critical=False)
    made = Certificates(*(folder / f"{name}.pem" for name in ("ca", "cert", "key")))
    for path, one in ((made.ca, ca), (made.cert, cert)):
        signed = one.sign(authority_key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    made.key.chmod(0o600)
    return made


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _loopback() -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address("127.0.0.1")


def _builder(subject, issuer, key, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
