"""Signed results, as c2pa's own reader sees them."""

import http.server
import io
import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from c2pa import Context, Reader
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from tests.certificates import Files, write_chain
from tt_flux_kontext.cli import main
from tt_flux_kontext.credentials import Credentials
from tt_flux_kontext.metadata import read_parameters, save_result, software
from tt_flux_kontext.parameters import File, Parameters

SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE = Parameters(prompt="a", weights="w", device="emulated")
EDITED = Parameters(prompt="a", weights="w", device="emulated", image=File("in.png", "1" * 64))


@pytest.fixture
def files(tmp_path) -> Files:
    return write_chain(tmp_path)


@pytest.fixture
def credentials(files) -> Credentials:
    return Credentials(files.chain, files.key)


def reader(path: Path, files: Files) -> Reader:
    """Of one who trusts the issuer, and asks nobody."""
    trust = {"trust": {"user_anchors": files.issuer}, "verify": {"remote_manifest_fetch": False}}
    return Reader(path, context=Context.from_dict(trust))


def noise(path: Path, seed: int = 0, **how) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return path


def claim_of(credentials: Credentials, *paths: Path):
    with ExitStack() as opened:
        return credentials.claim(*[opened.enter_context(path.open("rb")) for path in paths])


def failures(reader: Reader) -> set[str]:
    return {each["code"] for each in reader.get_validation_results()["activeManifest"]["failure"]}


def actions(manifest: dict) -> list[dict]:
    (assertion,) = [each for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    return assertion["data"]["actions"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_an_edit(tmp_path, files, credentials, suffix):
    """Has its picture as parent and the references as inputs, and its parameters are still there to be read."""
    inputs = noise(tmp_path / "in.png"), noise(tmp_path / "first.jpg", 1), noise(tmp_path / "second.webp", 2)
    picture, out = Image.open(noise(tmp_path / "result.png", 3)), tmp_path / f"out{suffix}"
    save_result(picture, out, EDITED, claim=claim_of(credentials, *inputs))
    with reader(out, files) as read:
        assert read.get_validation_state() == "Trusted" and not failures(read)
        manifest = read.get_active_manifest()
    opened, edited = actions(manifest)
    assert opened["action"] == "c2pa.opened" and edited["action"] == "c2pa.edited"
    assert edited["digitalSourceType"] == SOURCES + "compositeWithTrainedAlgorithmicMedia"
    name, *version = software().split()
    agent = {"name": name} | ({"version": version[0]} if version else {})
    assert edited["softwareAgent"] == agent
    assert manifest["claim_generator_info"][0].items() >= agent.items()
    ingredients = [(each["title"], each["format"], each["relationship"]) for each in manifest["ingredients"]]
    assert ingredients == [
        ("in.png", "image/png", "parentOf"),
        ("first.jpg", "image/jpeg", "inputTo"),
        ("second.webp", "image/webp", "inputTo"),
    ]
    assert not any("thumbnail" in each for each in (manifest, *manifest["ingredients"]))
    assert [len(each["parameters"]["ingredients"]) for each in (opened, edited)] == [1, 2]
    assert read_parameters(out) == EDITED and credentials.has_signed(out)
    if suffix.lower() == ".png":
        assert np.array_equal(np.asarray(Image.open(out)), np.asarray(picture))


def test_a_picture_from_text(tmp_path, files, credentials):
    out = tmp_path / "out.png"
    save_result(Image.new("RGB", (32, 32)), out, MADE, claim=credentials.claim(None))
    with reader(out, files) as read:
        assert read.get_validation_state() == "Trusted"
        manifest = read.get_active_manifest()
    (created,) = actions(manifest)
    assert created["action"] == "c2pa.created" and "ingredients" not in manifest
    assert created["digitalSourceType"] == SOURCES + "trainedAlgorithmicMedia"


@pytest.mark.parametrize("suffix,pixels", [(".png", b"IDAT"), (".jpg", b"\xff\xda"), (".webp", b"VP8 ")])
def test_changes_are_noticed(tmp_path, files, credentials, suffix, pixels):
    """Of pixels, and of what the file says of itself."""
    out = tmp_path / f"out{suffix}"
    save_result(Image.open(noise(tmp_path / "a.png")), out, MADE, claim=credentials.claim(None))
    whole = out.read_bytes()
    for place in (b"CreatorTool", pixels):
        changed = bytearray(whole)
        changed[whole.index(place) + 40] ^= 1
        out.write_bytes(changed)
        with reader(out, files) as read:
            assert read.get_validation_state() == "Invalid" and "assertion.dataHash.mismatch" in failures(read)
        assert not credentials.has_signed(out)


def test_turns_are_a_chain(tmp_path, files, credentials):
    """The parent's credentials go on in the result's, with what was wrong with them."""
    first, second = tmp_path / "first.jpg", tmp_path / "second.png"
    picture = Image.open(noise(tmp_path / "in.png"))
    save_result(picture, first, MADE, claim=credentials.claim(None))
    for wrong in (False, True):
        if wrong:
            first.write_bytes(first.read_bytes().replace(b"CreatorTool", b"CreatorTolo"))
        save_result(picture, second, EDITED, claim=claim_of(credentials, first))
        with reader(second, files) as read:
            assert read.get_validation_state() == "Trusted" and len(json.loads(read.json())["manifests"]) == 2
            (parent,) = read.get_active_manifest()["ingredients"]
        codes = {each["code"] for each in parent["validation_results"]["activeManifest"]["failure"]}
        assert ("assertion.dataHash.mismatch" in codes) == wrong


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM", "MPO"])
def test_pictures_of_other_kinds_are_parents(tmp_path, files, credentials, kind):
    picture, out = noise(tmp_path / "in.any", format=kind), tmp_path / "out.png"
    save_result(Image.open(picture), out, EDITED, claim=claim_of(credentials, picture))
    with reader(out, files) as read:
        assert read.get_validation_state() == "Trusted"
        (parent,) = read.get_active_manifest()["ingredients"]
    assert parent["title"] == "in.any" and (kind != "MPO" or parent["format"] == "image/jpeg")


def test_damaged_credentials_of_a_parent(tmp_path, files, credentials):
    """Don't keep anybody from editing it."""
    signed, out = tmp_path / "in.jpg", tmp_path / "out.png"
    save_result(Image.open(noise(tmp_path / "a.png")), signed, MADE, claim=credentials.claim(None))
    signed.write_bytes(signed.read_bytes().replace(b"jumdc2cl", b"jumdc2xx"))
    save_result(Image.open(signed), out, EDITED, claim=claim_of(credentials, signed))
    assert not credentials.has_signed(signed) and credentials.has_signed(out)
    with reader(out, files) as read:
        assert read.get_validation_state() == "Trusted"
        (parent,) = read.get_active_manifest()["ingredients"]
    assert parent["format"] == "application/octet-stream" and "active_manifest" not in parent


def test_nothing_is_fetched(tmp_path, credentials):
    """Though a picture may say where its credentials are."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        xmp = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" '
            f'dcterms:provenance="http://127.0.0.1:{server.server_port}/a.c2pa"/></rdf:RDF></x:xmpmeta>'
        )
        picture = noise(tmp_path / "in.jpg", xmp=xmp.encode())
        with pytest.raises(Exception, match="404|emote"):
            Reader(picture)
        fetched = len(asked)
        save_result(Image.open(picture), tmp_path / "o.png", EDITED, claim=claim_of(credentials, picture))
        server.shutdown()
        thread.join()
    assert fetched == len(asked) == 1


def test_threads(credentials):
    """Each file has a claim of its own, which no other has."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    claim = credentials.claim(None)
    with ThreadPoolExecutor(8) as pool:
        signed = list(pool.map(lambda _: claim.sign(file.getvalue(), "image/png"), range(32)))
    readers = [Reader("image/png", io.BytesIO(each)) for each in signed]
    assert {each.get_validation_state() for each in readers} == {"Valid"}
    assert len({each.get_active_manifest()["label"] for each in readers}) == 32


KEYS = {
    "Es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ps256": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_kinds_of_keys(tmp_path, algorithm):
    forms = [PrivateFormat.PKCS8] + [PrivateFormat.TraditionalOpenSSL] * (algorithm != "Ed25519")
    for form in forms:
        files = write_chain(tmp_path, KEYS[algorithm](), form=form)
        out = tmp_path / "out.png"
        save_result(Image.new("RGB", (8, 8)), out, MADE, claim=Credentials(files.chain, files.key).claim(None))
        with reader(out, files) as read:
            assert read.get_validation_state() == "Trusted"
            assert read.get_active_manifest()["signature_info"]["alg"] == algorithm


WRONG = {
    "is encrypted; `openssl pkey -in": {"encryption": BestAvailableEncryption(b"secret")},
    "the certificate is valid from": {"days": (-9, -1)},
    "which is not now": {"days": (1, 2)},
    "C2PA takes no signature by it (the certificate is invalid)": {"usage": ExtendedKeyUsageOID.SERVER_AUTH},
    "and RSA keys have 2048 bits or more": {"key": rsa.generate_private_key(65537, 1024)},
    "C2PA has no signatures by such a key": {"key": ec.generate_private_key(ec.SECP256K1())},
}


@pytest.fixture
def sign(tmp_path, monkeypatch, capsys):
    """Runs an edit with these files as far as its options, and returns the exit code and what was said."""
    monkeypatch.chdir(tmp_path)
    noise(tmp_path / "in.png")
    monkeypatch.setattr("tt_flux_kontext.cli.edit.make", lambda options: pytest.fail("an edit began"))

    def run(*words: str) -> tuple[int, str]:
        code = main(["edit", "in.png", "--prompt", "a", "--device", "emulated", *words])
        return code, capsys.readouterr().err

    return run


SIGNING = ["--c2pa-certificate", "chain.pem", "--c2pa-key", "key.pem"]


@pytest.mark.parametrize("says", WRONG)
def test_what_cannot_sign(tmp_path, sign, says):
    write_chain(tmp_path, **WRONG[says])
    code, said = sign(*SIGNING)
    assert code == 1 and says in said and said.count("\n") == 1
    assert not any(line in said for line in (tmp_path / "key.pem").read_text().splitlines())


def test_files_that_do_not_belong_together(tmp_path, sign):
    (tmp_path / "other").mkdir()
    write_chain(tmp_path)
    write_chain(tmp_path / "other")
    code, said = sign(*SIGNING[:3], "other/key.pem")
    assert code == 1 and "other/key.pem: it is not the private key of the first certificate in chain.pem." in said
    code, said = sign("--c2pa-certificate", "key.pem", "--c2pa-key", "key.pem")
    assert code == 1 and "key.pem: there is no certificate in PEM in it." in said
    code, said = sign("--c2pa-certificate", "chain.pem", "--c2pa-key", "chain.pem")
    assert code == 1 and "chain.pem: there is no private key in PEM in it." in said
    code, said = sign("--c2pa-certificate", "chian.pem", "--c2pa-key", "key.pem")
    assert code == 2 and "--c2pa-certificate chian.pem: there is no such file" in said and "chain.pem" in said
    code, said = sign("--c2pa-key", "key.pem")
    assert code == 2 and "--c2pa-certificate and --c2pa-key go together" in said


def test_without_the_package(tmp_path, sign, monkeypatch):
    write_chain(tmp_path)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    code, said = sign(*SIGNING)
    assert code == 1 and "pip install 'tt-flux-kontext[c2pa]'" in said


def test_a_certificate_that_expires_meanwhile(tmp_path, credentials, monkeypatch):
    """Nothing is edited that couldn't be signed."""
    (tmp_path / "old").mkdir()
    old = write_chain(tmp_path / "old", days=(-2, -1))
    monkeypatch.setattr(credentials, "_certificate", x509.load_pem_x509_certificate(old.chain.read_bytes()))
    with pytest.raises(ValueError, match="which is not now"):
        credentials.claim(None)


def test_the_key_stays_where_it_is(tmp_path, files, credentials, caplog):
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out.png"
    claim = credentials.claim(None)
    save_result(Image.new("RGB", (8, 8)), out, MADE, beside=True, claim=claim)
    secret = "".join(files.key.read_text().splitlines()[1:-1])
    shown = repr(claim) + repr(vars(credentials)) + caplog.text + out.with_suffix(".json").read_text()
    assert secret not in shown.replace("\\n", "") and secret.encode() not in out.read_bytes()
