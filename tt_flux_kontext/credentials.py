"""Content Credentials (C2PA): a signature on what a picture's file says, and on what it was made from."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from tt_flux_kontext.metadata import EDITED, GENERATED, SOURCES, software

_SETTINGS = {
    # Pictures may come from strangers: nothing is fetched that they name.
    "verify": {"remote_manifest_fetch": False},
    "core": {"allowed_network_hosts": []},
    # A result shows no more of what it was made from than it is meant to.
    "builder": {"thumbnail": {"enabled": False}},
}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_PARENT = "parent"


class Credentials:
    """A certificate and its private key, which sign. Threads may share them.

    Args:
        certificate: PEM file with the certificate, followed by those of its issuers.
        key: PEM file with the certificate's private key, not encrypted: P-256, P-384, P-521, Ed25519 or RSA.

    Raises `ValueError` for files that can't sign, such as an expired certificate, or without the package c2pa-python,
    and `OSError` for files that can't be read.
    """

    def __init__(self, certificate: str | Path, key: str | Path):
        try:
            import c2pa
            from cryptography import x509
            from cryptography.hazmat.primitives.serialization import Encoding
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}: pip install 'tt-flux-kontext[c2pa]' has what signing needs.") from error
        try:
            chain = x509.load_pem_x509_certificates(Path(certificate).read_bytes())
        except ValueError as error:
            raise ValueError(f"{certificate}: there is no certificate in PEM in it.") from error
        algorithm, private = _read_key(Path(key), chain[0], str(certificate))
        self._certificate, self._path = chain[0], certificate
        self._check_dates()
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
        self._signer = c2pa.C2paSignerInfo(algorithm, pem, private, None)  # None: no authority for time stamps
        self._context = c2pa.Context.from_dict(_SETTINGS)
        trial = io.BytesIO()
        Image.new("RGB", (1, 1)).save(trial, "PNG")
        try:
            self.claim(None).sign(trial.getvalue(), "image/png")
        except c2pa.C2paError as error:
            why = str(error).removeprefix("Signature: ")
            raise ValueError(
                f"{certificate}: C2PA takes no signature by it ({why}). It has to be for digital signatures, not for "
                "issuing certificates, with an extended key usage such as emailProtection, and RSA keys have 2048 bits "
                "or more."
            ) from error

    def claim(self, parent: BinaryIO | None, *inputs: BinaryIO) -> "Claim":
        """What is to be signed of an edit's results.

        Args:
            parent: file of the picture that is edited; None for pictures from text.
            inputs: files of others that the model looks at.

        Raises `ValueError` for a certificate that has expired meanwhile.
        """
        self._check_dates()
        return Claim(
            self,
            parent and self._ingredient(parent, "parentOf", _PARENT),
            tuple(self._ingredient(file, "inputTo", _input(number)) for number, file in enumerate(inputs)),
        )

    def has_signed(self, path: Path) -> bool:
        """Whether the file has Content Credentials that hold, by whomever."""
        from c2pa import C2paError, Reader

        try:
            with Reader(path, context=self._context) as reader:
                return reader.get_validation_state() != "Invalid"
        except C2paError:  # there are none, or they can't be read
            return False

    def _check_dates(self) -> None:
        begin, end = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        if not begin <= datetime.now(timezone.utc) <= end:
            raise ValueError(f"{self._path}: the certificate is valid from {begin} to {end}, which is not now.")

    def _ingredient(self, file: BinaryIO, relationship: str, name: str) -> bytes:
        """A picture's own credentials, and how it is called here, in an archive of c2pa's: some KB."""
        from c2pa import Builder, C2paError

        title = getattr(file, "name", None)  # of an upload None, or a number
        described = {"relationship": relationship, "label": name}
        if isinstance(title, str):
            described["title"] = Path(title).name
        archive = io.BytesIO()
        with Builder({}, context=self._context) as builder:
            try:
                builder.add_ingredient(described, _kind(file), file)
            except C2paError:  # a stranger's picture: what it says of itself can't be read
                builder.add_ingredient(described, "application/octet-stream", file)
            builder.write_ingredient_archive(name, archive)
        return archive.getvalue()


@dataclass(frozen=True)
class Claim:
    """That an AI made or edited a picture, and from what. `parent`, `inputs`: archives of `Credentials`."""

    credentials: Credentials
    parent: bytes | None
    inputs: Sequence[bytes]

    def sign(self, file: bytes, kind: str) -> bytes:
        """The file with the signed claim in it, which covers all else that is in it. `kind`: its MIME type.

        Raises c2pa's `C2paError`.
        """
        from c2pa import Builder, Signer

        agent = dict(zip(("name", "version"), software().split()))
        signed = io.BytesIO()
        definition = {
            "claim_generator_info": [agent],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": self._actions(agent)}}],
        }
        with (
            Builder(definition, context=self.credentials._context) as builder,
            Signer.from_info(self.credentials._signer) as signer,
        ):
            for archive in (self.parent, *self.inputs):
                if archive:
                    builder.add_ingredient_from_archive(io.BytesIO(archive))
            builder.sign(signer, kind, io.BytesIO(file), signed)
        return signed.getvalue()

    def _actions(self, agent: dict) -> list[dict]:
        """The parent is opened and edited; without one the picture is created."""
        action, source = ("c2pa.edited", EDITED) if self.parent else ("c2pa.created", GENERATED)
        made = {"action": action, "digitalSourceType": SOURCES + source, "softwareAgent": agent}
        if self.inputs:
            made["parameters"] = {"ingredientIds": [_input(number) for number in range(len(self.inputs))]}
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [_PARENT]}}
        return [opened, made] if self.parent else [made]


def _input(number: int) -> str:
    return f"input_{number}"


def _read_key(path: Path, certificate, of: str) -> tuple[str, bytes]:
    """C2PA's name of the algorithm, and the key in PEM as c2pa takes it. Nothing that is raised has the key in it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        raise ValueError(f"{path}: the key is encrypted; `openssl pkey -in {path}` decrypts it.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path}: there is no private key in PEM in it.") from None
    if key.public_key() != certificate.public_key():
        raise ValueError(f"{path}: it is not the private key of the first certificate in {of}.")
    algorithm = None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = _CURVES.get(key.curve.name)
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm = "ed25519"
    elif isinstance(key, rsa.RSAPrivateKey):
        algorithm = "ps256"
    if algorithm is None:
        raise ValueError(f"{path}: C2PA has no signatures by such a key: use P-256, P-384, P-521, Ed25519 or RSA.")
    return algorithm, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _kind(file: BinaryIO) -> str:
    """MIME type, by the content."""
    file.seek(0)
    try:
        with Image.open(file) as picture:
            kind = "image/jpeg" if picture.format == "MPO" else picture.get_format_mimetype()
    except UnidentifiedImageError:
        kind = None
    file.seek(0)
    return kind or "application/octet-stream"
