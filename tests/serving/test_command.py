"""`tt-flux-kontext serve` as an operator runs it."""

import importlib
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import yaml
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.serving.conftest import SECONDS, Served, free_port, served, until
from tt_flux_kontext.cli import main
from tt_flux_kontext.parameters import Parameters
from tt_flux_kontext.serving import engine
from tt_flux_kontext.serving.engine import open_engine
from tt_flux_kontext.serving.settings import Settings

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "tt_flux_kontext.cli", "serve", "--device", "emulated", *arguments]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_under_load(tiny_checkpoint, tmp_path, sent):
    """What runs is answered, and to have been stopped is no error."""
    port = free_port()
    process = command("--weights", str(tiny_checkpoint), "--max-area", "1024", "--port", str(port))
    try:
        server = Served(f"http://127.0.0.1:{port}", service=None)
        until(lambda: process.poll() is not None or listens(server))
        until(lambda: server.ask("/v1/health").status == 200)
        answers = []

        def ask() -> None:
            body = {"num_inference_steps": 4, "max_sequence_length": 16}
            answers.append(server.client().images.generate(prompt="a", extra_body=body))

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: "tt_flux_kontext_at_work 1.0" in server.ask("/metrics").said)
        process.send_signal(sent)
        asking.join()
        assert answers and process.wait(SECONDS) == 0
        assert not listens(server)
    finally:
        process.kill()
        process.communicate()


def listens(server: Served) -> bool:
    try:
        return server.ask("/health").status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_no_such_weights():
    process = command("--weights", "/no/such/folder", "--port", "0")
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "'/no/such/folder' is neither a folder here nor a repository" in said


def test_weights_of_the_real_size_are_watched(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(engine, "FLUX_WIDTH", 128)
    settings = Settings("tiny", max_area=32 * 32)
    opening = partial(open_engine, Parameters(prompt="", weights=str(tiny_checkpoint), device="emulated"), settings)
    with pytest.raises(engine.NotReviewed, match="--filter MODULE, or with --reviewed"), opening():
        pass
    with served(partial(opening, watched=True), settings) as server:
        until(lambda: server.service.worker.state == "ready")


def application(monkeypatch, arguments: str) -> FastAPI:
    """What other servers import, such as uvicorn and `tt serve`'s."""
    monkeypatch.setenv("TT_FLUX_KONTEXT_SERVE", f"--device emulated --max-area 1024 {arguments}")
    monkeypatch.delitem(sys.modules, "tt_flux_kontext.serving.asgi", raising=False)
    return importlib.import_module("tt_flux_kontext.serving.asgi").app


def test_application_for_other_servers(tiny_checkpoint, monkeypatch):
    """It serves what the environment says, and has started when it is ready."""
    monkeypatch.setenv("TT_FLUX_KONTEXT_API_KEY", "secret")
    app = application(monkeypatch, f"--weights '{tiny_checkpoint}' --model-name 'a name'")
    with TestClient(app) as client:
        assert client.get("/v1/health").json() == {"status": "ready", "model": "a name"}
        assert client.get("/v1/models").status_code == 401


def test_application_without_weights_does_not_start(monkeypatch):
    app = application(monkeypatch, "--weights /no/such/folder")
    with pytest.raises(RuntimeError, match="'/no/such/folder' is neither a folder"), TestClient(app):
        pass


def test_bundle():
    """`tt model package` installs what its `packages` say, not this package; torch comes with tt-metal."""
    bundle = yaml.safe_load((ROOT / "tt_flux_kontext" / "serving" / "tt-model.yaml").read_text())
    read = pytest.importorskip("tomllib").loads  # from Python 3.11 on
    project = read((ROOT / "pyproject.toml").read_text())["project"]
    needed = {*project["dependencies"], *project["optional-dependencies"]["serve"]}
    assert needed ^ {*bundle["runtime"]["packages"]} == {"torch>=2.5", "numpy", "numpy<2"}


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--filter", "json"], "'json' is no filter"),
        (["--filter", "json", "--reviewed"], "not allowed with argument"),
        (["--queue", "0"], "--queue: a whole number of at least 1, not '0'"),
        (["--seconds", "nan"], "--seconds: a number, not 'nan'"),
        (["--lora", "a", "b"], "--lora takes a PATH and a SCALE, not 'a b'"),
        (["--device", "tpu"], "--device"),
        (["--hots", "a"], "Did you mean: tt-flux-kontext serve --host a"),
    ],
)
def test_arguments(arguments, says, capsys):
    assert main(["serve", *arguments])
    assert says in capsys.readouterr().err
