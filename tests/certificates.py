"""Certificates to sign with, of issuers that nobody trusts."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Files:
    """Paths of a chain and its key in PEM, and the issuer's certificate."""

    chain: Path
    key: Path
    issuer: str


def write_chain(
    folder: Path,
    key=None,
    *,
    days: tuple[int, int] = (-1, 1),
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    encryption=None,
    form: PrivateFormat = PrivateFormat.PKCS8,
) -> Files:
    """A certificate of `key`, valid in so many days from now, and that of its issuer."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    issuer = _certificate("issuer", issuer_key, issuer_key, (-9, 9))
    signer = _certificate("signer", key, issuer_key, days, usage)
    files = Files(folder / "chain.pem", folder / "key.pem", _pem(issuer))
    files.chain.write_text(_pem(signer) + _pem(issuer))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, form, encryption or NoEncryption()))
    return files


def _certificate(name: str, key, issuer_key, days: tuple[int, int], usage=None) -> x509.Certificate:
    begin, end = (datetime.now(timezone.utc) + timedelta(each) for each in days)
    is_issuer, public = usage is None, key.public_key()
    builder = x509.CertificateBuilder(_name("issuer"), _name(name), public, x509.random_serial_number(), begin, end)
    builder = (
        builder.add_extension(x509.BasicConstraints(is_issuer, None), critical=True)
        .add_extension(
            x509.KeyUsage(not is_issuer, False, False, False, False, is_issuer, is_issuer, False, False), critical=True
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer_key, SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
