"""Edits with several references against diffusers' transformer, which gets all their latents and ids."""

from contextlib import ExitStack

import pytest
import torch
from PIL import Image

from reference.pipeline import quiet
from tests.pcc.test_masks import on_each
from tests.pcc.test_pipeline import GUIDANCE, LIMIT, PROMPT, ours, picture, reference, seeded, unshifted

WIDTH, HEIGHT = 96, 80
PICTURES = [picture(WIDTH, HEIGHT), picture(64, 112, seed=1), picture(48, 32, seed=2)]
CORNERS = {  # of each picture's ids: (index, row, column), of 5 x 6, 7 x 4 and 2 x 3 tokens
    "offset": [(1, 0, 0), (1, 0, 6), (1, 7, 0)],
    "index": [(1, 0, 0), (2, 0, 0), (3, 0, 0)],
    "stitch": [(1, 0, 0)],
}

pytestmark = pytest.mark.usefixtures("reset_seeds")


def stitched() -> Image.Image:
    """All pictures at the height of the highest, 112: 134, 64 and 168 pixels wide."""
    canvas = Image.new("RGB", (366, 112))
    for left, width, each in zip((0, 134, 198), (134, 64, 168), PICTURES, strict=True):
        canvas.paste(each.resize((width, 112), Image.Resampling.LANCZOS), (left, 0))
    return canvas


def show(pipe, images: list[Image.Image], corners: list[tuple[int, int, int]]):
    """Has diffusers' pipeline look at several pictures in place of its own. Returns what undoes that."""
    prepare = pipe.prepare_latents

    def prepare_all(image, *rest):
        latents, _, latent_ids, _ = prepare(None, *rest)
        maps, ids = [], []
        for each, corner in zip(images, corners, strict=True):
            pixels = pipe.image_processor.preprocess(each, *(edge // 16 * 16 for edge in reversed(each.size)))
            _, reference_latents, _, reference_ids = prepare(pixels, *rest)
            maps.append(reference_latents)
            ids.append(reference_ids + torch.tensor(corner) - torch.tensor([1, 0, 0]))
        return latents, torch.cat(maps, dim=1), latent_ids, torch.cat(ids)

    pipe.prepare_latents = prepare_all
    return lambda: delattr(pipe, "prepare_latents")


@on_each
@pytest.mark.parametrize("method", CORNERS)
def test_several_references(mesh_device, tiny_checkpoint, check_accuracy, request, method):
    arguments = {
        "image": PICTURES[0],
        "prompt": PROMPT,
        "max_area": WIDTH * HEIGHT,
        "_auto_resize": False,
        "max_sequence_length": 45,
        "guidance_scale": GUIDANCE,
        "sigmas": unshifted(HEIGHT, WIDTH, WIDTH * HEIGHT),
        "output_type": "latent",
    }
    more = {"reference_images": PICTURES[1:], "reference_method": method}
    out = ours(tiny_checkpoint, mesh_device)(generator=seeded(), **arguments, **more).images
    noise = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8, generator=seeded())
    packed = noise.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).reshape(1, -1, 64)
    images = [stitched()] if method == "stitch" else PICTURES
    with quiet(), ExitStack() as at_the_end:
        expected = []
        for dtype in (torch.float32, torch.bfloat16):
            theirs = reference(tiny_checkpoint, dtype)
            at_the_end.callback(show(theirs, images, CORNERS[method]))
            size = {"height": HEIGHT, "width": WIDTH}
            expected.append(theirs(latents=packed.to(dtype), **size, **arguments).images.float())
    check_accuracy(f"references, {request.node.callspec.id}", out, *expected, limit=LIMIT)
