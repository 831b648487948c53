"""Whole edits against diffusers' pipeline, from the same starting noise."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from reference.pipeline import load, quiet
from tt_flux_kontext import FluxKontextPipeline

PROMPT = "make the circle red"
# diffusers in bfloat16 also rounds times and latents, to which a small random transformer is sensitive.
LIMIT = 0.05
SMALL = {"max_area": 96 * 96, "_auto_resize": False, "max_sequence_length": 45, "num_inference_steps": 3}

pytestmark = pytest.mark.usefixtures("reset_seeds")


@cache
def reference(checkpoint, dtype):
    return load(checkpoint, dtype)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def ours(checkpoint, device) -> FluxKontextPipeline:
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(checkpoint, device, check_accuracy, label: str, **arguments) -> None:
    """The same call of our pipeline and of diffusers' in float32 and bfloat16, to latents and to the picture."""
    arguments = SMALL | arguments
    pipe = ours(checkpoint, device)
    batch = pipe(generator=torch.Generator().manual_seed(5), output_type="latent", **arguments).images
    for output_type in ("latent", "pt"):
        results = []
        for dtype in (torch.float32, torch.bfloat16):
            with quiet():
                # In bfloat16 diffusers would draw other noise.
                noise = starting_noise(checkpoint, arguments, len(batch))
                result = reference(checkpoint, dtype)(latents=noise, output_type=output_type, **arguments).images
            results.append(result.float())
        out = pipe(generator=torch.Generator().manual_seed(5), output_type=output_type, **arguments).images
        label_of = f"{label}, {'latents' if output_type == 'latent' else 'picture'}"
        check_accuracy(label_of, out, *results, limit=LIMIT)


def starting_noise(checkpoint, arguments, batch: int) -> torch.Tensor:
    """What diffusers draws in float32 for this call."""
    kept = {}

    def keep(pipe, step, timestep, tensors):
        raise StopIteration

    pipe = reference(checkpoint, torch.float32)
    prepare = pipe.prepare_latents

    def spy(*args):
        kept["latents"], *rest = prepare(*args)
        return kept["latents"], *rest

    pipe.prepare_latents = spy
    try:
        pipe(
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
            **(arguments | {"callback_on_step_end": keep}),
        )
    except StopIteration:
        pass
    finally:
        del pipe.prepare_latents
    assert len(kept["latents"]) == batch
    return kept["latents"]


def test_edit(mesh_device, tiny_checkpoint, check_accuracy):
    """The picture's shape is not the result's, and neither fills whole tiles."""
    compare(tiny_checkpoint, mesh_device, check_accuracy, "edit", image=picture(112, 80), prompt=PROMPT)


def test_text_to_image(mesh_device, tiny_checkpoint, check_accuracy):
    compare(tiny_checkpoint, mesh_device, check_accuracy, "text to image", prompt=PROMPT, height=80, width=128)


def test_true_cfg(mesh_device, tiny_checkpoint, check_accuracy):
    arguments = {"negative_prompt": "blue", "true_cfg_scale": 3.0, "image": picture(64, 64), "prompt": PROMPT}
    compare(tiny_checkpoint, mesh_device, check_accuracy, "edit with true CFG", **arguments)


def test_batch(mesh_device, tiny_checkpoint, check_accuracy):
    """Two prompts with a picture each, two results of each prompt."""
    arguments = {"image": [picture(64, 80, seed=1), picture(64, 80, seed=2)], "prompt": [PROMPT, "add a blue star"]}
    compare(tiny_checkpoint, mesh_device, check_accuracy, "batch of 2 x 2", num_images_per_prompt=2, **arguments)
