"""Pictures of a server that signs them."""

import base64
import io
import json
from functools import partial

import pytest
from c2pa import Reader

from tests.certificates import write_chain
from tests.serving.conftest import png, served, until
from tests.serving.test_openai import PROMPT, SHORT, gradient
from tt_flux_kontext.cli import main
from tt_flux_kontext.credentials import Credentials
from tt_flux_kontext.parameters import Parameters
from tt_flux_kontext.serving.engine import open_engine
from tt_flux_kontext.serving.settings import Settings


@pytest.fixture(scope="module")
def credentials(tmp_path_factory) -> Credentials:
    files = write_chain(tmp_path_factory.mktemp("signing"))
    return Credentials(files.chain, files.key)


@pytest.fixture(scope="module")
def signing(tiny_checkpoint, credentials):
    settings = Settings("tiny", max_area=32 * 32)
    parameters = Parameters(prompt="", weights=str(tiny_checkpoint), device="emulated")
    with served(partial(open_engine, parameters, settings), settings, credentials=credentials) as server:
        until(lambda: server.service.worker.state == "ready")
        yield server


def manifest(picture, kind: str = "png") -> dict:
    with Reader(f"image/{kind}", io.BytesIO(base64.b64decode(picture.b64_json))) as reader:
        assert reader.get_validation_state() == "Valid"
        return reader.get_active_manifest()


def actions(manifest: dict) -> list[str]:
    (assertion,) = [each for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    return [each["action"] for each in assertion["data"]["actions"]]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_edit(signing, kind):
    """Each result has a manifest of its own, with what was sent."""
    pictures = [png(gradient()), png(gradient(turned=90))]
    body = SHORT | {"seed": 0}
    answer = signing.client().images.edit(image=pictures, prompt=PROMPT, n=2, output_format=kind, extra_body=body)
    manifests = [manifest(picture, kind) for picture in answer.data]
    assert len({each["label"] for each in manifests}) == 2
    for each in manifests:
        assert actions(each) == ["c2pa.opened", "c2pa.edited"]
        assert [ingredient["relationship"] for ingredient in each["ingredients"]] == ["parentOf", "inputTo"]


def test_generation(signing):
    answer = signing.client().images.generate(prompt=PROMPT, extra_body=SHORT)
    assert actions(manifest(answer.data[0])) == ["c2pa.created"]


def test_a_result_edited_again(signing):
    """Its manifest goes on in the next one's."""
    client = signing.client().images
    first = client.edit(image=png(gradient()), prompt=PROMPT, extra_body=SHORT)
    result = base64.b64decode(first.data[0].b64_json)
    second = client.edit(image=("a.png", result), prompt=PROMPT, extra_body=SHORT)
    (parent,) = manifest(second.data[0])["ingredients"]
    assert parent["active_manifest"] == manifest(first.data[0])["label"]


def test_partial_pictures_too(signing):
    body = SHORT | {"num_inference_steps": 4}
    client = signing.client().images
    events = list(client.edit(image=png(gradient()), prompt=PROMPT, stream=True, partial_images=3, extra_body=body))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
    for event in events:
        assert actions(manifest(event)) == ["c2pa.opened", "c2pa.edited"]


def test_damaged_credentials_are_edited(signing, credentials):
    """Like any other picture: strangers may send what they like."""
    file = io.BytesIO()
    gradient().save(file, "JPEG")
    signed = credentials.claim(None).sign(file.getvalue(), "image/jpeg")
    damaged = signed.replace(b"jumdc2cl", b"jumdc2xx")
    assert damaged != signed
    answer = signing.client().images.edit(image=("a.jpg", damaged), prompt=PROMPT, extra_body=SHORT)
    assert len(manifest(answer.data[0])["ingredients"]) == 1


def test_certificate_that_expires_meanwhile(serve_puppet, puppet, monkeypatch, credentials):
    """No edit begins, and the client isn't told about files of the server's."""

    def expired(*files):
        raise ValueError("/secret/chain.pem: the certificate is valid from ...")

    puppet.go()
    with serve_puppet() as server:
        monkeypatch.setattr(server.service, "_credentials", credentials)
        monkeypatch.setattr(credentials, "claim", expired)
        answer = server.ask("/v1/images/generations", {"prompt": "a"})
    assert answer.status == 500 and "secret" not in json.dumps(answer.said) and not puppet.begun


def test_command(tmp_path, capsys):
    """Says what is wrong before anything is loaded."""
    write_chain(tmp_path, days=(-2, -1))
    files = ["--c2pa-certificate", str(tmp_path / "chain.pem"), "--c2pa-key", str(tmp_path / "key.pem")]
    assert main(["serve", "--weights", "none", "--device", "emulated", *files]) == 1
    assert "which is not now" in capsys.readouterr().err
    assert main(["serve", *files[:2]]) == 2
    assert "go together" in capsys.readouterr().err
