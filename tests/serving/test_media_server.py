"""The pipeline as Tenstorrent's media server asks it, and our runner with stand-ins for what it uses of that server."""

import asyncio
import base64
import importlib.util
import io
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.serving.conftest import png
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.serving.media_server import MediaServerPipeline

RUNNER = Path(__file__).parents[2] / "integrations" / "tt_media_server" / "flux_kontext_runner.py"
SIZE = {"height": 32, "width": 32, "max_area": 32 * 32, "max_sequence_length": 16, "_auto_resize": False}
EVENTS = [
    ("Start", "total"),
    ("Start", "encoder"),
    ("Start", "clip_encoding"),
    ("End", "clip_encoding"),
    ("Start", "t5_encoding"),
    ("End", "t5_encoding"),
    ("End", "encoder"),
    ("Start", "denoising"),
    ("Start", "denoising_step_0"),
    ("End", "denoising_step_0"),
    ("Start", "denoising_step_1"),
    ("End", "denoising_step_1"),
    ("End", "denoising"),
    ("Start", "vae"),
    ("End", "vae"),
    ("End", "total"),
]


class Recorder:
    """In the place of the server's, which takes events by the names of their classes, and pictures at the end."""

    def __init__(self, *labels):
        self.labels, self.events = labels, []

    def __call__(self, event) -> None:
        self.events.append((type(event).__name__.removeprefix("Section"), event.name))

    def flush(self, pictures: list[Image.Image]) -> None:
        self.size = pictures[0].size


class ImageManager:
    def base64_to_pil_image(self, text: str, target_mode: str = "RGB") -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(text))).convert(target_mode)


class BaseDeviceRunner:
    def __init__(self, device_id: str):
        self.device_id = device_id
        self.settings = SimpleNamespace(model_runner="tt-flux.1-kontext-dev", model_weights_path=None)


def server(recorders: list[Recorder]) -> dict[str, SimpleNamespace]:
    """What the runner uses of the server, by its modules there."""

    def recorder(*labels) -> Recorder:
        recorders.append(Recorder(*labels))
        return recorders[-1]

    return {
        "telemetry.image_metrics": SimpleNamespace(
            ImageStageRecorder=recorder, sampler_name=lambda pipeline: type(pipeline.scheduler).__name__
        ),
        "telemetry.telemetry_client": SimpleNamespace(TelemetryEvent=SimpleNamespace(MODEL_INFERENCE="inference")),
        "tt_model_runners.base_device_runner": SimpleNamespace(BaseDeviceRunner=BaseDeviceRunner),
        "utils.decorators": SimpleNamespace(log_execution_time=lambda *what: lambda function: function),
        "utils.image_manager": SimpleNamespace(ImageManager=ImageManager),
    }


@pytest.fixture
def recorders() -> list[Recorder]:
    return []


@pytest.fixture
def runner(tiny_checkpoint, recorders, monkeypatch):
    """One that is ready, with small pictures."""
    for name, module in server(recorders).items():
        monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType("package"))
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("flux_kontext_runner", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MediaServerPipeline", partial(MediaServerPipeline, **SIZE))
    runner = module.FluxKontextRunner("0")
    runner.settings.model_weights_path = tiny_checkpoint
    runner.set_device()
    assert asyncio.run(runner.warmup())
    yield runner
    runner.close_device()


def test_events(tiny_checkpoint, mesh_device):
    """Sections begin and end one in another, in the order of tt-metal's own pipelines, and the picture is ours."""
    pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device)
    recorder = Recorder()
    (picture,) = MediaServerPipeline(pipe, mesh_device, **SIZE).run_single_prompt(
        prompt="a red circle", negative_prompt="", num_inference_steps=2, seed=4, on_event=recorder
    )
    assert recorder.events == EVENTS
    noise = torch.Generator().manual_seed(4)
    (wanted,) = pipe(prompt="a red circle", num_inference_steps=2, generator=noise, **SIZE).images
    assert np.array_equal(np.asarray(picture), np.asarray(wanted))


def test_runner(runner, recorders):
    """Its three kinds of requests, each with the pipeline's own picture, and what it measures."""
    picture, mask = Image.new("RGB", (32, 32), "orange"), Image.new("L", (32, 32))
    mask.paste("white", (0, 0, 16, 32))
    fields = {"prompt": "a red circle", "negative_prompt": None, "num_inference_steps": 2}
    generation = SimpleNamespace(**fields, guidance_scale=2.5, seed=None)
    edit = SimpleNamespace(**generation.__dict__, image=base64.b64encode(png(picture)[1]).decode(), strength=0.6)
    masked = SimpleNamespace(**edit.__dict__, mask=base64.b64encode(png(mask)[1]).decode())

    def made(**arguments) -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        (wanted,) = runner.pipeline.pipe(guidance_scale=2.5, generator=noise, **fields, **SIZE, **arguments).images
        return np.asarray(wanted)

    wanted = [made(), made(image=picture), made(image=picture, mask_image=mask, strength=0.6)]
    for request, arrays in zip((generation, edit, masked), wanted):
        (result,) = runner.run([request])
        assert np.array_equal(np.asarray(result), arrays)
    assert recorders[0].events == recorders[1].events == EVENTS
    for recorder in recorders:
        assert recorder.labels == ("tt-flux.1-kontext-dev", "0", "FlowMatchEulerDiscreteScheduler")
        assert recorder.size == (32, 32)
    edit.image = "AAAA"
    (refused,) = runner.run([edit])
    assert (refused.status_code, refused.detail[:21]) == (400, "cannot identify image")
    edit.image, edit.num_inference_steps = base64.b64encode(png(picture)[1]).decode(), None
    (refused,) = runner.run([edit])
    assert "`num_inference_steps`" in refused.detail
