"""Sizes and prepared pictures: exactly those of diffusers' FluxKontextPipeline, and those by default."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS as THEIRS
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from PIL import Image

from reference.pipeline import load, quiet
from tt_flux_kontext.inputs import image_input
from tt_flux_kontext.models.vae import VAEConfig
from tt_flux_kontext.pictures import is_latents, prepare
from tt_flux_kontext.resolution import (
    PREFERRED_KONTEXT_RESOLUTIONS,
    edit_sizes,
    image_ids,
    output_size,
    pack_latents,
    reference_size,
    unpack_latents,
)

MULTIPLE = 16
VAE = VAEConfig(latent_channels=16, block_out_channels=(32, 32, 32, 32))


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
    """What diffusers' exact rule makes of a picture."""
    pictures, _, size = image_input(image, VAE, auto_resize=auto_resize, diffusers_sizes=True)
    return (
        pictures if is_latents(pictures, 16) else prepare(pictures, size, VaeImageProcessor(vae_scale_factor=MULTIPLE))
    )


def sizes(image, **arguments) -> tuple:
    """(width, height) of the result and of the picture, and the warnings."""
    warnings = []
    sink = logger.add(lambda message: warnings.append(str(message)), level="WARNING", format="{message}")
    try:
        _, size, image_size = image_input(image, VAE, **arguments)
    finally:
        logger.remove(sink)
    return size[::-1], image_size and image_size[::-1], len(warnings)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (min(height, 64), min(width, 64), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def test_buckets_are_diffusers():
    assert list(PREFERRED_KONTEXT_RESOLUTIONS) == THEIRS


@pytest.mark.parametrize("width,height", PREFERRED_KONTEXT_RESOLUTIONS)
def test_bucket(diffusers_pipe, width, height):
    """A picture of a bucket's size keeps it, and the result has it; by diffusers' exact rule it has theirs."""
    image, *out = theirs(diffusers_pipe, image=picture(width, height), height=height, width=width)
    assert image.shape == (1, 3, height, width)
    assert torch.equal(ours(picture(width, height)), image)
    assert output_size(height, width, 1024**2, MULTIPLE, diffusers_sizes=True) == tuple(out)
    for named in ({}, {"width": width, "height": height}):
        assert sizes(picture(width, height), **named) == ((width, height), (width, height), 0)


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
    height=st.none() | st.just(0) | st.integers(16, 3000),
    width=st.none() | st.just(0) | st.integers(16, 3000),
    max_area=st.sampled_from([1024**2, 512**2, 100_000, 128**2]),
)
def test_output_size(diffusers_pipe, height, width, max_area):
    _, *size = theirs(diffusers_pipe, height=height, width=width, max_area=max_area)
    if all(size):
        assert output_size(height, width, max_area, MULTIPLE, diffusers_sizes=True) == tuple(size)
        trained = max_area == 1024**2 and (width or 1024, height or 1024) in THEIRS
        assert trained or output_size(height, width, max_area, MULTIPLE) == tuple(size)
    else:
        with pytest.raises(ValueError, match="too narrow"):
            output_size(height, width, max_area, MULTIPLE)


@pytest.mark.parametrize(
    "picture_size,arguments,result,warned",
    [
        ((1920, 1080), {}, (1392, 752), 0),
        ((832, 1216), {}, (832, 1248), 0),
        ((1920, 1080), {"height": 0, "width": 0}, (1392, 752), 0),
        ((1920, 1080), {"height": 1024, "width": 1024}, (1024, 1024), 1),
        ((1920, 1080), {"height": 1024}, (1024, 1024), 1),
        ((1920, 1080), {"height": 1568, "width": 672}, (672, 1568), 1),
        ((1024, 1024), {"height": 512, "width": 512}, (1024, 1024), 1),  # the area is `max_area`'s, as in diffusers
        ((1024, 1024), {"height": 512, "width": 512, "max_area": 512**2}, (512, 512), 1),
        ((1920, 1080), {"max_area": 512**2}, (688, 368), 1),
        # of their own size
        ((200, 120), {"auto_resize": False}, (192, 112), 0),
        ((128, 128), {"auto_resize": False, "max_area": 128**2}, (128, 128), 0),
        ((64, 128), {"auto_resize": False, "max_area": 128**2}, (64, 128), 0),
        ((256, 256), {"auto_resize": False, "max_area": 128**2}, (128, 128), 1),
        ((672, 1568), {"auto_resize": False}, (672, 1568), 0),
        ((256, 128), {"auto_resize": False, "max_area": 128**2, "height": 128, "width": 128}, (128, 128), 1),
    ],
)
def test_result_and_picture_have_one_size(picture_size, arguments, result, warned):
    assert sizes(picture(*picture_size), **arguments) == (result, result, warned)


def test_diffusers_sizes():
    """The exact rule, where the two differ."""
    assert sizes(picture(1920, 1080), diffusers_sizes=True) == ((1024, 1024), (1392, 752), 1)
    assert sizes(picture(1024, 1024), diffusers_sizes=True) == ((1024, 1024), (1024, 1024), 0)
    named = {"height": 1568, "width": 672}
    assert sizes(None, diffusers_sizes=True, **named) == ((656, 1552), None, 1)
    assert sizes(None, **named) == ((672, 1568), None, 0)


def test_sizes_of_latents():
    """They can't be resized: theirs is the result's, unless one is asked for."""
    latents = torch.randn(2, 16, 12, 8)
    assert sizes(latents) == ((64, 96), (64, 96), 0)
    assert sizes(latents, height=128, width=128, max_area=128**2) == ((128, 128), (64, 96), 1)


@pytest.mark.parametrize("area", [{}, {"max_area": 96 * 64}])
def test_sizes_of_packed_latents(area):
    """They are of a picture of the size that is named, and so is the result; or of the result that is named."""
    latents, named = torch.randn(2, 16, 12, 8), {"height": 96, "width": 64} | area
    assert sizes(pack_latents(latents), **named) == ((64, 96), (64, 96), 0)
    assert torch.equal(image_input(pack_latents(latents), VAE, **named)[0], latents)
    landscape = {"height": 1080, "width": 1920}
    earlier, _, _ = sizes(None, **landscape)
    packed = torch.randn(1, earlier[0] * earlier[1] // 256, 64)
    assert sizes(packed, **landscape) == (earlier, earlier, 0)
    with pytest.raises(ValueError, match="tokens, but"):
        sizes(packed[:, 1:], **landscape)


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(16, 4000),
    height=st.integers(16, 4000),
    asked=st.sampled_from([{}, {"height": 640, "width": 960}]),
    max_area=st.sampled_from([1024**2, 512**2, 2048**2]),
    auto_resize=st.booleans(),
)
def test_one_grid(width, height, asked, max_area, auto_resize):
    """Whatever is asked for, unless it is diffusers' rule; and without a size the picture keeps its shape."""
    rule = {"auto_resize": auto_resize, "max_area": max_area}
    size, reference = edit_sizes([(height, width)], **{"height": None, "width": None} | asked, multiple_of=16, **rule)
    assert size == reference
    own = reference_size(height, width, MULTIPLE, auto_resize)
    if not asked and min(*size, *own) >= 320:
        assert size[1] / size[0] == pytest.approx(own[1] / own[0], rel=0.08)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 12000), width=st.integers(1, 12000))
def test_reference_is_the_nearest_bucket(height, width):
    found_height, found_width = reference_size(height, width, MULTIPLE)
    assert (found_width, found_height) in THEIRS
    if min(height, width) >= MULTIPLE:
        height, width = height // MULTIPLE * MULTIPLE, width // MULTIPLE * MULTIPLE
    distance = abs(width / height - found_width / found_height)
    assert all(distance <= abs(width / height - w / h) for w, h in THEIRS)


@pytest.mark.parametrize("height,width", [(-64, 64), (64, -1)])
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
    assert torch.equal(unpack_latents(theirs, 16 * rows, 16 * columns, 8, "latents"), latents)
    ids = FluxKontextPipeline._prepare_latent_image_ids(batch, rows, columns, "cpu", torch.float32)
    assert torch.equal(image_ids(rows, columns, 0), ids)
    ids[:, 0] = 1
    assert torch.equal(image_ids(rows, columns, 1), ids)
