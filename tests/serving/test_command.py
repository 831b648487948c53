"""`tt-flux-kontext serve` as an operator runs it."""

import importlib
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

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


def test_application_for_other_servers(tiny_checkpoint, monkeypatch):
    """With what the environment says, as uvicorn and `tt serve` take it."""
    monkeypatch.setenv("TT_FLUX_KONTEXT_SERVE", f"--weights '{tiny_checkpoint}' --model-name 'a name'")
    monkeypatch.setenv("TT_FLUX_KONTEXT_API_KEY", "secret")
    app = importlib.import_module("tt_flux_kontext.serving.asgi").app
    (gate,) = app.user_middleware
    assert gate.kwargs["settings"] == Settings("a name", api_key="secret")


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
