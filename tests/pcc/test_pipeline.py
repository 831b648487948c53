"""Whole edits against diffusers' pipeline, from the same starting noise."""

import math
from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import MagCacheConfig
from PIL import Image

from reference.accuracy import relative_rmse
from reference.make_checkpoint import make_checkpoint
from reference.pipeline import load, quiet
from reference.torch_models import bf16
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.resolution import output_size

PROMPT = "make the circle red"
SEED = 5
AREA = 96 * 96
# A thousand times these levels, and the guidance, are exact in bfloat16, so that torch in it is a fair measure.
LEVELS = (1.0, 0.5, 0.25)
GUIDANCE = 2.0
LIMIT = 0.015  # of the relative RMSE: a reference at the wrong place or of the wrong shape costs at least 0.018

pytestmark = pytest.mark.usefixtures("reset_seeds")


@cache
def reference(checkpoint, dtype):
    return load(checkpoint, dtype)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def ours(checkpoint, device, split: tuple[int, int] | None = None) -> FluxKontextPipeline:
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, split=split)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unshifted(height: int, width: int, area: int = AREA) -> list[float]:
    """The levels that the schedule of a result of this size shifts to LEVELS."""
    rows, columns = (edge // 16 for edge in output_size(height, width, area, 16))
    mu = 0.5 + (1.15 - 0.5) * (rows * columns - 256) / (4096 - 256)
    return [1 / (1 + math.exp(mu) * (1 / level - 1)) for level in LEVELS]


def compare(
    checkpoint,
    device,
    check_accuracy,
    label: str,
    height: int = 96,
    width: int = 96,
    area: int = AREA,
    split: tuple[int, int] | None = None,
    step_cache: MagCacheConfig | None = None,
    **arguments,
) -> None:
    """The same call of our pipeline and of diffusers' in float32 and bfloat16, to latents and to the picture."""
    arguments = {
        "height": height,
        "width": width,
        "max_area": area,
        "_auto_resize": False,
        "max_sequence_length": 45,
        "guidance_scale": GUIDANCE,
        "sigmas": unshifted(height, width, area),
    } | arguments
    pipe = ours(checkpoint, device, split)
    with quiet(), ExitStack() as at_the_end:
        if step_cache:
            pipe.enable_cache(step_cache)
            for dtype in (torch.float32, torch.bfloat16):
                transformer = reference(checkpoint, dtype).transformer
                transformer.enable_cache(step_cache)
                at_the_end.callback(transformer.disable_cache)
        noise = starting_noise(checkpoint, arguments)
        for output_type in ("latent", "pt"):
            ours_only = {"generator": seeded(), "output_type": output_type, "diffusers_sizes": True}
            out = pipe(**arguments, **ours_only).images
            reference32, reference16 = (
                # In bfloat16 diffusers would draw other noise.
                reference(checkpoint, dtype)(latents=noise, output_type=output_type, **in_dtype(arguments, dtype))
                for dtype in (torch.float32, torch.bfloat16)
            )
            what = "latents" if output_type == "latent" else "picture"
            check_accuracy(f"{label}, {what}", out, reference32.images, reference16.images.float(), limit=LIMIT)


def in_dtype(arguments: dict, dtype: torch.dtype) -> dict:
    return {name: x.to(dtype) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


def starting_noise(checkpoint, arguments) -> torch.Tensor:
    """What diffusers draws in float32 for this call."""
    pipe = reference(checkpoint, torch.float32)
    prepare, kept = pipe.prepare_latents, []

    def keep(*args):
        kept.extend(prepare(*args))
        raise StopIteration

    pipe.prepare_latents = keep
    try:
        pipe(generator=torch.Generator().manual_seed(SEED), **arguments)
    except StopIteration:
        return kept[0]
    finally:
        del pipe.prepare_latents


def test_edit(mesh_device, tiny_checkpoint, check_accuracy):
    """The picture's shape is not the result's, and neither fills whole tiles."""
    compare(tiny_checkpoint, mesh_device, check_accuracy, "edit", image=picture(112, 80), prompt=PROMPT)


@pytest.mark.parametrize(
    "device_params",
    [{"mesh_shape": (1, 1)}, pytest.param({"name": "emulated:t3k"}, marks=pytest.mark.slow)],
    ids=["one chip", "t3k"],
    indirect=True,
)
def test_step_cache(mesh_device, tiny_checkpoint, check_accuracy, request):
    """The second of three steps does without the blocks."""
    config = MagCacheConfig(mag_ratios=[1.0], max_skip_steps=1, retention_ratio=0.0, num_inference_steps=len(LEVELS))
    label = f"edit with step cache, {request.node.callspec.id}"
    edit = {"image": picture(112, 80), "prompt": PROMPT, "num_images_per_prompt": 2}
    compare(tiny_checkpoint, mesh_device, check_accuracy, label, step_cache=config, **edit)


def test_text_to_image(mesh_device, tiny_checkpoint, check_accuracy):
    compare(tiny_checkpoint, mesh_device, check_accuracy, "text to image", prompt=PROMPT, height=80, width=128)


def test_true_cfg(mesh_device, tiny_checkpoint, check_accuracy):
    arguments = {"negative_prompt": "blue", "true_cfg_scale": 3.0, "image": picture(64, 64), "prompt": PROMPT}
    compare(tiny_checkpoint, mesh_device, check_accuracy, "edit with true CFG", **arguments)


def test_batch(mesh_device, tiny_checkpoint, check_accuracy):
    """Two prompts with a picture each, two results of each prompt."""
    arguments = {"image": [picture(64, 80, seed=1), picture(64, 80, seed=2)], "prompt": [PROMPT, "add a blue star"]}
    compare(tiny_checkpoint, mesh_device, check_accuracy, "batch of 2 x 2", num_images_per_prompt=2, **arguments)


@pytest.mark.parametrize("size,label", [("tiny_schnell", "no guidance embedding"), ("odd", "odd widths")])
def test_other_configs(mesh_device, tmp_path, check_accuracy, size, label):
    checkpoint = make_checkpoint(tmp_path / size, size=size)
    compare(checkpoint, mesh_device, check_accuracy, label, image=picture(64, 80), prompt=PROMPT)


def test_embeddings_and_latents(mesh_device, tiny_checkpoint, check_accuracy):
    """In place of the text and of the picture."""
    embeds, negative = bf16(torch.randn(2, 1, 37, 96))
    pooled, negative_pooled = bf16(torch.randn(2, 1, 64))
    arguments = {
        "image": bf16(torch.randn(1, 16, 10, 6)),
        "prompt_embeds": embeds,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": negative,
        "negative_pooled_prompt_embeds": negative_pooled,
        "true_cfg_scale": 1.5,
    }
    compare(tiny_checkpoint, mesh_device, check_accuracy, "embeddings and latents", **arguments)


def error_of(precision: str, checkpoint, device, edge: int = 96, text_tokens: int = 45) -> float:
    """Relative RMSE of the latents of an edit, against diffusers in float32."""
    arguments = {
        "prompt": PROMPT,
        "image": picture(edge + 16, edge - 16),
        "height": edge,
        "width": edge,
        "max_area": edge**2,
        "_auto_resize": False,
        "max_sequence_length": text_tokens,
        "sigmas": unshifted(edge, edge, edge**2),
        "output_type": "latent",
    }
    with quiet():
        expected = reference(checkpoint, torch.float32)(generator=seeded(), **arguments).images
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision=precision)
    pipe.set_progress_bar_config(disable=True)
    result = pipe(generator=seeded(), diffusers_sizes=True, **arguments).images
    error = relative_rmse(result, expected)
    print(f"\n{precision}, {edge} x {edge}: relative RMSE {error:.4f}")
    return error


@pytest.mark.parametrize("precision,limit", [("bfp8_mixed", 0.02), ("bfp8", 0.04)])
def test_bfp8(mesh_device, tiny_checkpoint, precision, limit):
    """The bars of these policies are their own: torch has nothing like them."""
    assert error_of(precision, tiny_checkpoint, mesh_device) < limit


FAST = {"prompt": PROMPT, "max_area": 64 * 64, "max_sequence_length": 32, "num_inference_steps": 2}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def test_noise_of_a_list_of_generators(mesh_device, tiny_checkpoint):
    seeds = [3, 4]
    arguments = {"num_images_per_prompt": 2, "output_type": "latent"} | FAST
    both = ours(tiny_checkpoint, mesh_device)(
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], **arguments
    ).images
    arguments["num_images_per_prompt"] = 1
    for seed, result in zip(seeds, both, strict=True):
        generator = torch.Generator().manual_seed(seed)
        alone = ours(tiny_checkpoint, mesh_device)(generator=generator, **arguments).images
        assert torch.equal(alone[0], result)


def test_output_types(mesh_device, tiny_checkpoint):
    pipe = ours(tiny_checkpoint, mesh_device)
    results = {kind: pipe(generator=seeded(), output_type=kind, **FAST).images for kind in ("pil", "np", "pt")}
    assert results["pt"].shape == (1, 3, 64, 64) and results["np"].shape == (1, 64, 64, 3)
    assert np.array_equal(results["pt"].permute(0, 2, 3, 1).numpy(), results["np"])
    assert np.array_equal(np.asarray(results["pil"][0]), (results["np"][0] * 255).round().astype(np.uint8))
    (images,) = pipe(generator=seeded(), output_type="np", return_dict=False, **FAST)
    assert np.array_equal(images, results["np"])


def test_callback(mesh_device, tiny_checkpoint):
    """Sees what it asked for, and what it returns is used: as in diffusers."""
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), {name: tensor.clone() for name, tensor in tensors.items()}))
        return {"latents": torch.zeros_like(tensors["latents"]), "prompt_embeds": tensors["prompt_embeds"] * 0}

    arguments = {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
        "output_type": "latent",
    } | FAST
    with quiet():
        expected = reference(tiny_checkpoint, torch.float32)(generator=seeded(), **arguments).images
    theirs, seen[:] = list(seen), []
    result = ours(tiny_checkpoint, mesh_device)(generator=seeded(), **arguments).images
    assert torch.equal(result, expected)  # the last step's replacement
    for mine, their in zip(seen, theirs, strict=True):
        assert mine[0] == their[0] and mine[1] == pytest.approx(their[1])
        for name, tensor in their[2].items():
            assert mine[2][name].shape == tensor.shape
            assert relative_rmse(mine[2][name], tensor) < 0.02 or not tensor.any()
