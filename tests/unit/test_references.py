"""Several references: where their tokens stand, what they are made of, and what they may be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unit.test_inputs import ODD
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.residency import DoesNotFit
from tt_flux_kontext.resolution import reference_ids

FAST = {
    "prompt": "a",
    "max_area": 64 * 64,
    "max_sequence_length": 32,
    "num_inference_steps": 2,
    "output_type": "latent",
}
GRIDS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@pytest.fixture
def pipe(tiny_checkpoint, mesh_device):
    pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def run(pipe, **arguments):
    arguments = FAST | {"_auto_resize": False} | arguments
    return pipe(generator=torch.Generator().manual_seed(0), **arguments).images


def corners(grids: list[tuple[int, int]], method: str) -> list[tuple[int, ...]]:
    """The first id of each reference, whose others have to follow row by row."""
    first, found = 0, []
    ids = reference_ids(grids, method).long()
    for rows, columns in grids:
        own = ids[first : first + rows * columns]
        index, top, left = own[0].tolist()
        assert own.tolist() == [[index, top + row, left + column] for row in range(rows) for column in range(columns)]
        found.append((index, top, left))
        first += rows * columns
    assert first == len(ids)
    return found


class TestIds:
    @pytest.mark.parametrize(
        "grids,expected",
        [
            ([(3, 4)], [(0, 0)]),
            ([(4, 3)], [(0, 0)]),
            ([(4, 4)] * 4, [(0, 0), (4, 0), (0, 4), (8, 0)]),
            ([(2, 5), (5, 2)], [(0, 0), (2, 0)]),
            ([(5, 2), (5, 2), (5, 2)], [(0, 0), (0, 2), (0, 4)]),
            ([(2, 5), (2, 5), (2, 5)], [(0, 0), (2, 0), (4, 0)]),
        ],
    )
    def test_of_offset(self, grids, expected):
        """Worked out by hand, with the rule of ComfyUI."""
        assert corners(grids, "offset") == [(1, *corner) for corner in expected]

    @settings(deadline=None)
    @given(grids=GRIDS)
    def test_of_offset_never_meet(self, grids):
        """And all that are placed so far grow along their shorter side, counting the new one."""
        seen = set(map(tuple, reference_ids(grids, "offset").tolist()))
        assert len(seen) == sum(rows * columns for rows, columns in grids)
        height = width = 0
        for (rows, columns), (index, top, left) in zip(grids, corners(grids, "offset"), strict=True):
            below, right = (height + rows, max(width, columns)), (max(height, rows), width + columns)
            assert index == 1 and (top, left) in ((height, 0), (0, width))
            height, width = max(height, top + rows), max(width, left + columns)
            assert (height, width) == (right if below[0] > right[1] else below)

    @settings(deadline=None)
    @given(grids=GRIDS)
    def test_of_index(self, grids):
        assert corners(grids, "index") == [(number, 0, 0) for number in range(1, len(grids) + 1)]


class TestPictures:
    def test_one_is_the_same_by_all_methods(self, pipe):
        """Also in a list alone."""
        first, *others = (
            run(pipe, image=picture(), reference_method=method) for method in ("offset", "index", "stitch")
        )
        size = {"height": 48, "width": 64, "max_area": 48 * 64}
        in_list = run(pipe, reference_images=[picture()], **size)
        assert all(torch.equal(first, other) for other in (*others, in_list))
        assert torch.equal(first, run(pipe, image=picture(), reference_images=[]))

    def test_of_any_kind(self, pipe):
        """A batch with a picture each, and references for both: results are those of each alone."""
        pictures = [picture(seed=1), picture(seed=2)]
        pixels = torch.from_numpy(np.array(picture(32, 80))).permute(2, 0, 1)
        kinds = picture(32, 80), np.array(picture(32, 80)), pixels, pipe.encode(picture(32, 80), _auto_resize=False)
        noise = torch.randn(2, 12, 64)
        both = run(pipe, image=pictures, prompt=["a", "a"], latents=noise, reference_images=[kinds[0]])
        for kind in kinds:
            alone = run(pipe, image=pictures[1], latents=noise[1:], reference_images=[kind])
            assert torch.equal(alone, both[1:])
        assert not torch.equal(alone, run(pipe, image=pictures[1], latents=noise[1:]))

    def test_buckets(self, pipe, monkeypatch):
        """Each picture's own, a result's and a stitched one's."""
        sizes = []

        def look(edit):
            sizes.append((edit.size, *edit.picture_sizes))
            raise KeyboardInterrupt

        monkeypatch.setattr(pipe._editor, "size", look)
        arguments = {"image": picture(200, 100), "reference_images": [picture(100, 200)], "max_area": 1024**2}
        for method in ("offset", "stitch"):
            with pytest.raises(KeyboardInterrupt):
                run(pipe, reference_method=method, _auto_resize=True, **arguments)
        wide, high, widest = (720, 1456), (1456, 720), (672, 1568)
        assert sizes == [(wide, wide, high), (wide, widest)]  # stitched they are 400 + 100 x 200 pixels

    def test_of_masked_edits(self, pipe):
        """Beside the picture, or beside the reference in its place."""
        masked = {
            "image": picture(),
            "mask_image": Image.new("L", (8, 8), "white"),
            "reference_images": [picture(32, 48)],
        }
        results = [
            run(pipe, reference_method=method, **masked | more)
            for method in ("offset", "stitch")
            for more in ({}, {"image_reference": picture(64, 48, seed=1)}, {"reference_images": None})
        ]
        distinct = {tuple(result.flatten().tolist()) for result in results}
        assert len(distinct) == 5  # one reference is the same by both


@pytest.mark.parametrize(
    "arguments,match",
    [
        ({"reference_images": picture()}, "`reference_images` has to be a list of pictures but is Image"),
        ({"reference_images": torch.zeros(2, 3, 8, 8)}, "has to be a list of pictures but is Tensor"),
        ({"reference_images": [picture(), "b.png"]}, r"`reference_images\[1\]` must be PIL, numpy or torch"),
        ({"reference_images": [[picture()] * 2]}, r"`reference_images\[0\]` has 2 pictures"),
        ({"reference_images": [torch.zeros(1, 64, 64)]}, r"`reference_images\[0\]` is packed latents"),
        ({"reference_images": [torch.zeros(1, 16, 5, 4)]}, r"`reference_images\[0\]` must have an even height"),
        ({"reference_images": [picture(8, 8)]}, "both must be at least 16"),
        ({"reference_method": "uxo"}, "`reference_method` must be one of offset, index, stitch but is 'uxo'"),
        (
            {"reference_method": "stitch", "reference_images": [picture(), torch.zeros(1, 16, 4, 4)]},
            "puts pictures side by side, which latents are not",
        ),
    ],
)
def test_refused(pipe, mesh_device, arguments, match):
    free = dram_bytes(mesh_device)
    with pytest.raises((ValueError, TypeError), match=match):
        run(pipe, **arguments)
    assert dram_bytes(mesh_device) == free


def test_odd_values(pipe, monkeypatch):
    monkeypatch.setattr(pipe._editor, "run", lambda edits, begins: iter([[torch.zeros(1, 16, 64)]]))
    for value in ODD:
        try:
            run(pipe, reference_images=[picture(), value])
        except (ValueError, TypeError) as error:
            assert "reference_images[1]" in str(error) or "pixels" in str(error), (value, error)


def test_too_many(pipe, mesh_device):
    free = dram_bytes(mesh_device)
    with pytest.raises(DoesNotFit):
        run(pipe, reference_images=[picture()] * 10**4, _auto_resize=True)
    assert dram_bytes(mesh_device) == free
