"""Masked edits against diffusers' inpainting pipeline, from the same noise."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import FluxKontextInpaintPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext_inpaint as theirs
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from reference.pipeline import quiet
from reference.torch_models import bf16
from tests.pcc.test_pipeline import GUIDANCE, LIMIT, PROMPT, in_dtype, ours, picture, reference, seeded, unshifted
from tt_flux_kontext.backend import choose

WIDTH, HEIGHT = 96, 80

pytestmark = pytest.mark.usefixtures("reset_seeds")
on_each = pytest.mark.parametrize(
    "device_params",
    [
        {"mesh_shape": (1, 1)},
        pytest.param(
            {"name": "emulated:t3k"},
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(choose() != "emulated", reason="the chips there are"),
            ],
        ),
    ],
    ids=["one chip", "t3k"],
    indirect=True,
)


@cache
def inpainting(checkpoint, dtype) -> FluxKontextInpaintPipeline:
    pipe = FluxKontextInpaintPipeline(**reference(checkpoint, dtype).components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def same_noise(monkeypatch):
    """In bfloat16 diffusers would draw other noise."""

    def draw(shape, generator=None, device=None, dtype=None):
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    monkeypatch.setattr(theirs, "randn_tensor", draw)


def mask(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Image.Image:
    """Whatever an ellipse covers, with grey edges, that are on no grid."""
    rows, columns = np.mgrid[:height, :width]
    middle = np.random.default_rng(seed).uniform(0.4, 0.6, 2) * (height, width)
    distance = np.hypot((rows - middle[0]) / height, (columns - middle[1]) / width)
    return Image.fromarray((255 * np.clip(3 - 9 * distance, 0, 1)).astype(np.uint8))


def compare(checkpoint, device, check_accuracy, label: str, kinds=("latent", "pt"), **arguments) -> None:
    """The same call of our pipeline and of diffusers' in float32 and bfloat16, to latents and to the picture."""
    arguments = {
        "image": picture(WIDTH, HEIGHT),
        "prompt": PROMPT,
        "mask_image": mask(),
        "max_area": WIDTH * HEIGHT,
        "_auto_resize": False,
        "max_sequence_length": 45,
        "guidance_scale": GUIDANCE,
        "sigmas": unshifted(HEIGHT, WIDTH, WIDTH * HEIGHT),
    } | arguments
    pipe = ours(checkpoint, device)
    for kind in kinds:
        out = pipe(generator=seeded(), output_type=kind, paste=False, **arguments).images
        with quiet():
            reference32, reference16 = (
                inpainting(checkpoint, dtype)(generator=seeded(), output_type=kind, **in_dtype(arguments, dtype)).images
                for dtype in (torch.float32, torch.bfloat16)
            )
        what = "latents" if kind == "latent" else "picture"
        check_accuracy(f"{label}, {what}", out, reference32, reference16.float(), limit=LIMIT)


@on_each
def test_mask(mesh_device, tiny_checkpoint, check_accuracy, request):
    compare(tiny_checkpoint, mesh_device, check_accuracy, f"mask, {request.node.callspec.id}")


@on_each
def test_strength_and_reference(mesh_device, tiny_checkpoint, check_accuracy, request):
    """Two of three steps, with a reference of another shape, for two results."""
    arguments = {"strength": 0.5, "image_reference": picture(64, 112, seed=1), "num_images_per_prompt": 2}
    label = f"mask, strength and reference, {request.node.callspec.id}"
    compare(tiny_checkpoint, mesh_device, check_accuracy, label, kinds=["latent"], **arguments)


def test_true_cfg(mesh_device, tiny_checkpoint, check_accuracy):
    arguments = {"negative_prompt": "blue", "true_cfg_scale": 3.0}
    compare(tiny_checkpoint, mesh_device, check_accuracy, "mask, true CFG", kinds=["latent"], **arguments)


def test_noise_given(mesh_device, tiny_checkpoint, check_accuracy):
    """Which is the start, unmixed, at any strength."""
    noise = bf16(torch.randn(1, 16, HEIGHT // 8, WIDTH // 8))
    arguments = {"strength": 0.5, "latents": noise}
    compare(tiny_checkpoint, mesh_device, check_accuracy, "mask, noise given", kinds=["latent"], **arguments)


def test_batch(mesh_device, tiny_checkpoint, check_accuracy):
    """Two prompts with a picture and a mask each, two results of each prompt."""
    arguments = {
        "image": [picture(WIDTH, HEIGHT, seed) for seed in (1, 2)],
        "mask_image": [mask(seed=1), mask(seed=2)],
        "prompt": [PROMPT, "add a blue star"],
        "num_images_per_prompt": 2,
    }
    compare(tiny_checkpoint, mesh_device, check_accuracy, "mask, batch of 2 x 2", ["latent"], **arguments)
