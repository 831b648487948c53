"""ComfyUI's node against a server in a process of its own, with a stand-in for ComfyUI's classes."""

import asyncio
import base64
import http.server
import importlib.util
import inspect
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.serving.conftest import Served, png

ROOT = Path(__file__).parents[2]
NODE = ROOT / "integrations" / "comfyui" / "tt_flux_kontext_edit.py"


class _Type:
    """Of an input or output."""

    class Input(SimpleNamespace):
        def __init__(self, id: str, optional: bool = False, **how):
            super().__init__(id=id, optional=optional, **how)

    class Output(SimpleNamespace):
        pass


def comfy_api() -> ModuleType:
    """What the node uses of `comfy_api.latest`, by its names there."""
    latest = ModuleType("comfy_api.latest")
    latest.ComfyExtension = type("ComfyExtension", (), {})
    latest.io = SimpleNamespace(
        **{name: type(name, (_Type,), {}) for name in ("Image", "Mask", "Int", "Float", "String")},
        ComfyNode=type("ComfyNode", (), {}),
        NodeOutput=lambda *results: SimpleNamespace(result=results),
        Schema=lambda **what: SimpleNamespace(**what),
    )
    return latest


@pytest.fixture
def node(monkeypatch):
    """The node's module, imported as ComfyUI does."""
    latest = comfy_api()
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    spec = importlib.util.spec_from_file_location("tt_flux_kontext_edit", NODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(tiny_checkpoint) -> Iterator[Served]:
    port = 22000 + os.getpid() % 10000
    line = [sys.executable, "-m", "tt_flux_kontext.cli", "serve", "--weights", str(tiny_checkpoint)]
    how = ["--device", "emulated", "--max-area", "1024", "--max-steps", "8", "--port", str(port)]
    with subprocess.Popen(line + how, cwd=ROOT, env={**os.environ, "TT_FLUX_KONTEXT_API_KEY": "secret"}) as process:
        server = Served(f"http://127.0.0.1:{port}", service=None)
        try:
            while not ready(server):
                assert process.poll() is None
                time.sleep(0.1)
            yield server
        finally:
            process.kill()


def ready(server: Served) -> bool:
    try:
        return server.ask("/v1/health").status == 200
    except OSError:
        return False


@pytest.fixture
def edit(node, server, monkeypatch):
    """A call of the node with few steps."""
    monkeypatch.setattr(node, "SERVER", server.url)
    monkeypatch.setenv("TT_FLUX_KONTEXT_API_KEY", "secret")

    def call(image: torch.Tensor, **inputs) -> torch.Tensor:
        given = {"prompt": "a hat", "seed": 3, "steps": 2, "guidance": 2.5, "server": server.url, **inputs}
        (result,) = asyncio.run(node.TTFluxKontextEdit.execute(image, **given)).result
        return result

    return call


@pytest.fixture
def by_openai(server):
    """The same edit, by OpenAI's client."""

    def call(**fields) -> torch.Tensor:
        body = {"seed": 3, "num_inference_steps": 2, "guidance_scale": 2.5}
        answer = server.client(api_key="secret").images.edit(prompt="a hat", extra_body=body, **fields)
        return image(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))))

    return call


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def image(*pictures: Image.Image) -> torch.Tensor:
    """As ComfyUI has them: [B, H, W, 3], from 0 to 1."""
    return torch.from_numpy(np.stack([np.float32(each) / 255 for each in pictures]))


def test_an_edit(edit, by_openai):
    result = edit(image(picture(0)))
    assert result.dtype == torch.float32 and result.shape == (1, 32, 32, 3)
    assert torch.equal(result, by_openai(image=png(picture(0))))


def test_references(edit, by_openai):
    """Those of a batch after the first."""
    result = edit(image(picture(0), picture(1)))
    assert torch.equal(result, by_openai(image=[png(picture(0)), png(picture(1))]))
    assert not torch.equal(result, edit(image(picture(0))))


def test_mask(edit):
    """1 where the picture is edited: the rest stays."""
    mask = torch.zeros(1, 32, 32)
    mask[:, :, 16:] = 1
    given = image(picture(0))
    result = edit(given, mask=mask)
    assert torch.equal(result[:, :, :16], given[:, :, :16]) and not torch.equal(result[:, :, 16:], given[:, :, 16:])


def test_errors(edit, node, server):
    """In the server's words, or those of the system."""
    given = image(picture(0))
    with pytest.raises(RuntimeError, match="answers 400: `num_inference_steps` may be 8 at most"):
        edit(given, steps=20)
    with pytest.raises(RuntimeError, match="`mask` has 64 x 64 pixels"):
        edit(given, mask=torch.zeros(1, 64, 64))
    with pytest.raises(RuntimeError, match="begins with http"):
        edit(given, server="file:///etc")
    with pytest.raises(RuntimeError, match="refused.*Does tt-flux-kontext serve run there"):
        edit(given, server="http://127.0.0.1:9")


def test_key_goes_to_its_own_server(edit, node, monkeypatch):
    """A workflow that names another one does not get it."""
    monkeypatch.setattr(node, "SERVER", "http://elsewhere:8000")
    with pytest.raises(RuntimeError, match="answers 401: The header"):
        edit(image(picture(0)))


@pytest.fixture
def busy_server() -> Iterator[SimpleNamespace]:
    """It sends two requests away before it answers one."""
    statuses = iter((429, 503, 200))
    data = [{"b64_json": base64.b64encode(png(picture(5))[1]).decode()}]

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(next(statuses))
            self.send_header("retry-after", "1")
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": "Full."}, "data": data}).encode())

        def log_message(self, *what):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", left=statuses)
        server.shutdown()


def test_busy_server(edit, busy_server):
    """It is asked again after the second that it names."""
    begun = time.monotonic()
    assert torch.equal(edit(image(picture(0)), server=busy_server.url), image(picture(5)))
    assert not list(busy_server.left) and time.monotonic() - begun >= 2


def test_patience_ends(edit, node, busy_server, monkeypatch):
    monkeypatch.setattr(node, "PATIENCE", 0)
    with pytest.raises(RuntimeError, match="answers 429: Full."):
        edit(image(picture(0)), server=busy_server.url)
    assert len(list(busy_server.left)) == 2


def test_what_comfyui_sees(node):
    """The extension's nodes; each input of the schema is an argument of the call, and those without need none."""
    extension = asyncio.run(node.comfy_entrypoint())
    (found,) = asyncio.run(extension.get_node_list())
    schema = found.define_schema()
    assert schema.node_id == "TTFluxKontextEdit" and len(schema.outputs) == 1
    arguments = inspect.signature(found.execute).parameters
    assert {each.id for each in schema.inputs} == set(arguments)
    optional = {name for name, argument in arguments.items() if argument.default is not argument.empty}
    assert {each.id for each in schema.inputs if each.optional} == optional == {"mask"}
