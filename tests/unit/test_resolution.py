"""Sizes and prepared pictures, exactly those of diffusers' FluxKontextPipeline."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS as THEIRS
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reference.pipeline import load, quiet
from tt_flux_kontext.inputs import image_input
from tt_flux_kontext.resolution import (
    PREFERRED_KONTEXT_RESOLUTIONS,
    image_ids,
    output_size,
    pack_latents,
    reference_size,
)

MULTIPLE = 16


class Prepared(Exception):
    """Carries what diffusers made of a call, out of its pipeline."""


@pytest.fixture(scope="module")
def diffusers_pipe(tiny_checkpoint):
    pipe = load(tiny_checkpoint)

    def stop(image, batch_size, channels, height, width, *rest):
        raise Prepared(image, height, width)

    pipe.prepare_latents = stop
    return pipe


def theirs(pipe, **arguments):
    """(prepared picture or None, height, width) of a call."""
    embeds = {"prompt_embeds": torch.zeros(1, 8, 96), "pooled_prompt_embeds": torch.zeros(1, 64)}
    with quiet(), pytest.raises(Prepared) as prepared:
        pipe(**embeds, **arguments)
    return prepared.value.args


def ours(image, auto_resize=True):
    return image_input(image, VaeImageProcessor(vae_scale_factor=MULTIPLE), 16, MULTIPLE, auto_resize)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (min(height, 64), min(width, 64), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def test_buckets_are_diffusers():
    assert list(PREFERRED_KONTEXT_RESOLUTIONS) == THEIRS


@pytest.mark.parametrize("width,height", PREFERRED_KONTEXT_RESOLUTIONS)
def test_bucket(diffusers_pipe, width, height):
    """A picture of a bucket's size keeps it, and the default result's size is that of diffusers for it."""
    image, out_height, out_width = theirs(diffusers_pipe, image=picture(width, height), height=height, width=width)
    assert image.shape == (1, 3, height, width)
    assert torch.equal(ours(picture(width, height)), image)
    assert output_size(height, width, 1024**2, MULTIPLE) == (out_height, out_width)


@pytest.mark.parametrize("width,height", [(1, 1), (10000, 300), (300, 10000), (641, 480), (17, 16), (1023, 1025)])
@pytest.mark.parametrize("auto_resize", [True, False])
def test_input_sizes(diffusers_pipe, width, height, auto_resize):
    if min(width, height) < MULTIPLE:  # diffusers divides by zero
        if auto_resize:
            assert ours(picture(width, height)).shape == (1, 3, 1024, 1024)
        else:
            with pytest.raises(ValueError, match="at least 16"):
                ours(picture(width, height), auto_resize)
        return
    image, *_ = theirs(diffusers_pipe, image=picture(width, height), _auto_resize=auto_resize)
    assert torch.equal(ours(picture(width, height), auto_resize), image)


@settings(max_examples=60, deadline=None)
@given(
    height=st.none() | st.integers(16, 3000),
    width=st.none() | st.integers(16, 3000),
    max_area=st.sampled_from([1024**2, 512**2, 100_000, 128**2]),
)
def test_output_size(diffusers_pipe, height, width, max_area):
    _, *size = theirs(diffusers_pipe, height=height, width=width, max_area=max_area)
    if all(size):
        assert output_size(height, width, max_area, MULTIPLE) == tuple(size)
    else:
        with pytest.raises(ValueError, match="too narrow"):
            output_size(height, width, max_area, MULTIPLE)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 12000), width=st.integers(1, 12000))
def test_reference_is_the_nearest_bucket(height, width):
    found_height, found_width = reference_size(height, width, MULTIPLE)
    assert (found_width, found_height) in THEIRS
    if min(height, width) >= MULTIPLE:
        height, width = height // MULTIPLE * MULTIPLE, width // MULTIPLE * MULTIPLE
    distance = abs(width / height - found_width / found_height)
    assert all(distance <= abs(width / height - w / h) for w, h in THEIRS)


@pytest.mark.parametrize("height,width", [(0, 64), (64, -1)])
def test_sizes_that_can_not_be(height, width):
    with pytest.raises(ValueError, match="must be positive"):
        output_size(height, width, 1024**2, MULTIPLE)


@pytest.mark.parametrize("kind", ["pil list", "numpy", "numpy batch", "tensor", "tensor batch", "tensor list", "gray"])
def test_kinds_of_pictures(diffusers_pipe, kind):
    first, second = picture(100, 60), picture(100, 60).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    arrays = [np.asarray(image, dtype=np.float32) / 255 for image in (first, second)]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    # What diffusers takes of the same pictures: batches, where it would misread a single array or tensor.
    mine, their = {
        "pil list": ([first, second], [first, second]),
        "numpy": (arrays[0], arrays[0][None]),
        "numpy batch": (np.stack(arrays), np.stack(arrays)),
        "tensor": (tensors[0], tensors[0][None]),
        "tensor batch": (torch.stack(tensors), torch.stack(tensors)),
        "tensor list": (tensors, torch.stack(tensors)),
        "gray": (first.convert("L"), first.convert("L").convert("RGB")),
    }[kind]
    image, *_ = theirs(diffusers_pipe, image=their)
    assert torch.equal(ours(mine), image)


def test_latents_pass():
    latents = torch.randn(2, 16, 6, 8)
    assert torch.equal(ours(latents), latents)


@settings(deadline=None)
@given(batch=st.integers(1, 3), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_packing_and_ids(batch, rows, columns):
    latents = torch.randn(batch, 16, 2 * rows, 2 * columns)
    theirs = FluxKontextPipeline._pack_latents(latents, batch, 16, 2 * rows, 2 * columns)
    assert torch.equal(pack_latents(latents), theirs)
    ids = FluxKontextPipeline._prepare_latent_image_ids(batch, rows, columns, "cpu", torch.float32)
    assert torch.equal(image_ids(rows, columns, 0), ids)
    ids[:, 0] = 1
    assert torch.equal(image_ids(rows, columns, 1), ids)
