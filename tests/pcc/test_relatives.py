"""FLUX.1 [dev] and [schnell]: pictures from text by our pipeline, against diffusers' FluxPipeline."""

import json
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from reference.make_checkpoint import make_checkpoint
from reference.pipeline import quiet
from tests.pcc.test_pipeline import AREA, GUIDANCE, LIMIT, PROMPT, ours, seeded, unshifted
from tt_flux_kontext import call
from tt_flux_kontext.schedule import sigma_schedule

pytestmark = pytest.mark.usefixtures("reset_seeds")

# As in black-forest-labs/FLUX.1-schnell: trained for levels that don't move with the picture's size.
SCHNELL_SCHEDULER = {"shift": 1.0, "use_dynamic_shifting": False}
# [dev] gets levels and a guidance that are exact in bfloat16, so that torch in it is a fair measure. [schnell] takes
# its own four steps, of which the timestep 750 is not: there LIMIT is what holds.
DEV = {"height": 96, "width": 96, "sigmas": unshifted(96, 96), "guidance_scale": GUIDANCE, "max_sequence_length": 45}
SCHNELL = {"height": 80, "width": 112, "num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 256}


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    return relative(tmp_path_factory.mktemp("checkpoint") / "dev", "tiny")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    return relative(tmp_path_factory.mktemp("checkpoint") / "schnell", "tiny_schnell", **SCHNELL_SCHEDULER)


def relative(folder, size: str, **scheduler):
    """A checkpoint whose model_index.json and scheduler are those of a relative."""
    make_checkpoint(folder, size)
    for name, fields in (
        ("model_index.json", {"_class_name": "FluxPipeline"}),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@cache
def theirs(checkpoint, dtype) -> FluxPipeline:
    with quiet():
        pipe = DiffusionPipeline.from_pretrained(str(checkpoint), dtype=dtype, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def starting_noise(pipe, height: int, width: int) -> torch.Tensor:
    size = height, width
    return call._noise(pipe, call.noise_shape(pipe, 1, size), size, seeded())


def compare(checkpoint, device, check_accuracy, label: str, **arguments) -> None:
    """The same call without a picture, to latents and to the picture."""
    assert type(theirs(checkpoint, torch.float32)) is FluxPipeline
    area = {"max_area": arguments["height"] * arguments["width"]}  # ours takes the shape from height and width alone
    pipe = ours(checkpoint, device)
    with quiet():
        for output_type in ("latent", "pt"):
            out = pipe(prompt=PROMPT, generator=seeded(), output_type=output_type, **arguments, **area).images
            noise = starting_noise(pipe, arguments["height"], arguments["width"])
            reference32, reference16 = (
                theirs(checkpoint, dtype)(
                    prompt=PROMPT, latents=noise.to(dtype), output_type=output_type, **arguments
                ).images
                for dtype in (torch.float32, torch.bfloat16)
            )
            what = "latents" if output_type == "latent" else "picture"
            check_accuracy(f"{label}, {what}", out, reference32, reference16.float(), limit=LIMIT)


def test_dev(mesh_device, dev, check_accuracy):
    assert AREA == DEV["height"] * DEV["width"]  # for which those levels are
    compare(dev, mesh_device, check_accuracy, "FLUX.1 [dev]", **DEV)


def test_schnell(mesh_device, schnell, check_accuracy):
    compare(schnell, mesh_device, check_accuracy, "FLUX.1 [schnell]", **SCHNELL)


def test_noise_is_that_of_diffusers(mesh_device, dev):
    """Not only the same latents: the same generator gives the same start."""
    pipe, kept = theirs(dev, torch.float32), []

    def keep(pipe, step, timestep, tensors):
        kept.append(tensors["latents"])
        return {}

    arguments = {"prompt": PROMPT, "height": 96, "width": 96, "max_sequence_length": 32, "output_type": "latent"}
    with quiet():
        pipe(generator=seeded(), num_inference_steps=1, callback_on_step_end=keep, **arguments)
    noise = starting_noise(ours(dev, mesh_device), 96, 96)
    with quiet():
        again = pipe(latents=noise, num_inference_steps=1, **arguments).images
    assert torch.equal(again, kept[0])


@pytest.mark.parametrize("tokens", [64, 4096])
def test_levels_of_schnell_are_even_at_every_size(schnell, mesh_device, tokens):
    assert sigma_schedule(ours(schnell, mesh_device).scheduler, 4, tokens) == [1.0, 0.75, 0.5, 0.25, 0.0]
