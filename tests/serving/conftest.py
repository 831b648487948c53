"""A server in this process, with a tiny pipeline or with one whose steps a test lets go one by one."""

import io
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import openai
import pytest
from PIL import Image

from tt_flux_kontext.edit import Phase
from tt_flux_kontext.parameters import Parameters
from tt_flux_kontext.residency import EditSize
from tt_flux_kontext.serving import worker as worker_module
from tt_flux_kontext.serving.app import create_app
from tt_flux_kontext.serving.engine import Engine, open_engine
from tt_flux_kontext.serving.metrics import Metrics
from tt_flux_kontext.serving.review import unfiltered
from tt_flux_kontext.serving.server import Server
from tt_flux_kontext.serving.service import Service
from tt_flux_kontext.serving.settings import Settings
from tt_flux_kontext.serving.worker import Worker
from tt_flux_kontext.turns import Turn

SECONDS = 90  # within which anything has to happen here, on a busy machine too


@dataclass
class Served:
    """A server that runs."""

    url: str
    service: Service

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **how) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "any", "max_retries": 0, **how})

    def ask(self, path: str, fields: dict | None = None, **headers) -> SimpleNamespace:
        """GET, or POST of JSON: status, headers and what the body says."""
        data = None if fields is None else json.dumps(fields).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"} | headers)
        try:
            answer = urllib.request.urlopen(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
        kind = answer.headers["content-type"]
        said = json.loads(text) if kind == "application/json" else text
        return SimpleNamespace(status=answer.status, headers=answer.headers, said=said)

    def outcomes(self) -> dict[str, float]:
        """Requests by outcome."""
        lines = [line for line in self.ask("/metrics").said.splitlines() if "_requests_total{" in line]
        return {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


@contextmanager
def served(
    open_engine: Callable, settings: Settings, review=unfiltered, page=False, credentials=None
) -> Iterator[Served]:
    metrics = Metrics()
    worker = Worker(open_engine, settings, metrics)
    service = Service(settings, worker, metrics, review, credentials)
    port = free_port()
    server = Server(create_app(service, page), "127.0.0.1", port, on_stop=worker.stop)
    thread = threading.Thread(target=super(Server, server).run)  # signals are the main thread's
    thread.start()
    try:
        until(lambda: server.started)
        yield Served(f"http://127.0.0.1:{port}", service)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint) -> Iterator[Served]:
    """With a pipeline on the emulated device, whose pictures have 32 x 32 pixels."""
    settings = Settings("tiny", max_area=32 * 32)
    parameters = Parameters(prompt="", weights=str(tiny_checkpoint), device="emulated")
    with served(partial(open_engine, parameters, settings), settings) as server:
        until(lambda: server.service.worker.state == "ready")
        yield server


class Puppet:
    """In the place of a pipeline: its edits do nothing, and each step waits until the test lets it go."""

    multiple_of = 16

    def __init__(self):
        self.turn = Turn()
        self.steps = threading.Semaphore(0)
        self.begun = []  # prompts
        self.fails: Exception | None = None
        self.num_timesteps = 0

    def read_call(self, **arguments) -> SimpleNamespace:
        return SimpleNamespace(size=EditSize(text_tokens=7, image_tokens=4, pixels=1024), **arguments)

    def dispatch_calls(self, calls) -> Iterator[Phase]:
        results = []
        for number, call in enumerate(calls):
            self.begun.append(call.prompt)
            try:
                yield from self._edit(call, number)
                images = [Image.new("RGB", (32, 32))] * call.num_images_per_prompt
                results.append(SimpleNamespace(images=images))
            except Exception as error:
                results.append(error)
        return results

    def _edit(self, call, number: int) -> Iterator[Phase]:
        self.num_timesteps = call.num_inference_steps
        for step in range(call.num_inference_steps):
            self.steps.acquire()
            if self.fails:
                raise self.fails
            yield Phase("step", step + 1, call.num_inference_steps, number)
            call.callback_on_step_end(self, step, 1000.0 * (1 - step / call.num_inference_steps), {})

    def go(self, steps: int = 1000) -> None:
        self.steps.release(steps)


@pytest.fixture
def puppet(monkeypatch) -> Puppet:
    monkeypatch.setattr(worker_module, "read_call", lambda pipe, **arguments: pipe.read_call(**arguments))
    return Puppet()


@pytest.fixture
def serve_puppet(puppet) -> Callable:
    """(settings, review) -> a server with the puppet."""

    @contextmanager
    def opened():
        yield Engine(puppet, lambda: None, colours=None)

    @contextmanager
    def serve(review=unfiltered, page=False, **settings):
        with served(opened, Settings("puppet", **settings), review, page) as server:
            until(lambda: server.service.worker.state == "ready")
            try:
                yield server
            finally:
                puppet.go()

    return serve


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.01)


def png(picture: Image.Image) -> tuple[str, bytes]:
    """As openai's client takes files."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "picture.png", file.getvalue()
