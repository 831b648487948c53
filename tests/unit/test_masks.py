"""Masks: what they may be, which pixels stay, and what the part around one becomes."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from tests.unit.test_inputs import ODD
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.masks import fit, read_masks

WIDTH, HEIGHT = 80, 64
FAST = {"prompt": "a", "max_area": WIDTH * HEIGHT, "max_sequence_length": 32, "num_inference_steps": 2}


@pytest.fixture
def pipe(tiny_checkpoint, mesh_device):
    pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def mask(box=(20, 10, 61, 43), width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    white = Image.new("L", (width, height))
    ImageDraw.Draw(white).rectangle(box, fill=255)
    return white


def run(pipe, **arguments):
    arguments = FAST | {"image": picture(), "mask_image": mask(), "_auto_resize": False} | arguments
    return pipe(generator=torch.Generator().manual_seed(0), **arguments).images


class TestKinds:
    @pytest.mark.parametrize(
        "kind",
        [
            lambda grey: grey.convert("1"),
            lambda grey: grey.convert("RGB"),
            lambda grey: grey.convert("RGBA"),
            lambda grey: grey.convert("RGBA").convert("RGBa"),
            lambda grey: grey.convert("LA"),
            lambda grey: grey.convert("P"),
            lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
            lambda grey: [grey],
            np.asarray,
            lambda grey: np.asarray(grey) > 127,
            lambda grey: (np.asarray(grey) > 127).astype(np.int64),
            lambda grey: np.asarray(grey)[..., None],
            lambda grey: np.asarray(grey)[None],
            lambda grey: np.asarray(grey.convert("RGB")),
            lambda grey: np.asarray(grey.convert("RGB"))[None] / 255,
            lambda grey: torch.from_numpy(np.array(grey)),
            lambda grey: torch.from_numpy(np.array(grey))[None, None] / 255,
            lambda grey: torch.from_numpy(np.array(grey))[None] > 127,
            lambda grey: [torch.from_numpy(np.array(grey)) > 127],
        ],
    )
    @pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (32, 48)])
    def test_mean_the_same(self, kind, size):
        grey = mask((20, 12, 59, 43))
        expected = torch.zeros(1, 1, *size, dtype=torch.bool)
        down, right = size[0] / HEIGHT, size[1] / WIDTH
        expected[..., round(12 * down) : round(44 * down), round(20 * right) : round(60 * right)] = True
        assert torch.equal(fit(read_masks(kind(grey)), size), expected)

    @pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (48, 128)])
    @pytest.mark.parametrize("mode", ["L", "RGB", "1"])
    def test_are_resized_as_by_diffusers(self, size, mode):
        theirs = VaeImageProcessor(vae_scale_factor=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        grey = Image.linear_gradient("L").rotate(30).resize((70, 50)).convert(mode)
        assert torch.equal(fit(read_masks(grey), size).float(), theirs.preprocess(grey, *size))

    def test_odd_values(self, pipe):
        for value in ODD:
            try:
                run(pipe, mask_image=value, num_inference_steps=1, output_type="latent")
            except (ValueError, TypeError) as error:
                assert "`mask_image`" in str(error) or "`strength`" in str(error), (value, error)


BATCH = {"prompt": ["a", "b"], "image": [picture()] * 2}


@pytest.mark.parametrize(
    "arguments,match",
    [
        ({"image": None}, "`mask_image` is the mask of a picture: pass that as `image`"),
        ({"mask_image": None, "strength": 0.5}, "`strength` is for masked edits only"),
        ({"mask_image": None, "image_reference": picture()}, "`image_reference` is for masked edits only"),
        ({"mask_image": None, "padding_mask_crop": 4}, "`padding_mask_crop` is for masked edits only"),
        ({"strength": -0.1}, "`strength` must be from 0 to 1 but is -0.1"),
        ({"strength": 1.5}, "`strength` must be from 0 to 1 but is 1.5"),
        ({"strength": "much"}, "`strength` has to be a number but is 'much'"),
        ({"strength": 0.0}, "`strength` 0.0 leaves none of 2 steps"),
        ({"strength": 0}, "leaves none of 2 steps"),
        ({"paste": "no"}, "`paste` has to be True or False but is 'no'"),
        ({"mask_image": Image.new("L", (WIDTH, HEIGHT))}, "`mask_image` leaves nothing to paint anew"),
        ({"mask_image": mask((9, 9, 14, 14))}, "where it meets a grid of 8 x 8 pixels"),
        ({"mask_image": "mask.png"}, "`mask_image` must be PIL, numpy or torch"),
        ({"mask_image": []}, "`mask_image` is an empty list"),
        ({"mask_image": [mask(), np.zeros((4, 4))]}, "`mask_image` is a list of mixed kinds"),
        ({"mask_image": Image.new("L", (0, 4))}, "`mask_image` is a picture of 0 x 4 pixels"),
        ({"mask_image": np.zeros((4, 4, 4, 4, 4))}, "`mask_image` of shape .* is no mask"),
        ({"mask_image": torch.zeros(1, 5, 8, 8)}, "has 5 channels: a mask is grey"),
        ({"mask_image": torch.full((8, 8), 2.0)}, "`mask_image` has values from 2 to 2"),
        ({"mask_image": torch.full((8, 8), -1)}, "`mask_image` has values from -1"),
        ({"mask_image": torch.full((8, 8), torch.nan)}, "`mask_image` has values"),
        ({"mask_image": torch.zeros(8, 8, dtype=torch.complex64)}, "`mask_image` is of torch.complex64"),
        ({"mask_image": np.array([["a"]])}, "`mask_image` is an array of <U1"),
        ({"mask_image": [mask()] * 2}, "`mask_image` has 2 masks, which 1 results can't share"),
        ({"mask_image": [mask(), Image.new("L", (8, 8))]} | BATCH, "leaves nothing to paint anew"),
        ({"image": torch.zeros(1, 16, 8, 10)}, "`image` is latents, which have no pixels to keep"),
        (
            {"image": torch.zeros(1, 16, 8, 10), "paste": False, "height": 64, "width": 64},
            "With `mask_image` the result has the size of its picture, 80 x 64 pixels",
        ),
        ({"diffusers_sizes": True}, "leave out `height`, `width` and `diffusers_sizes`"),
        ({"padding_mask_crop": -1}, "`padding_mask_crop` must be at least 0"),
        ({"padding_mask_crop": 1.5}, "`padding_mask_crop` has to be a whole number"),
        ({"padding_mask_crop": 4, "image": np.asarray(picture())}, "`image` has to be one PIL image but is ndarray"),
        ({"padding_mask_crop": 4, "mask_image": torch.ones(8, 8)}, "`mask_image` has to be one PIL image but is"),
        ({"padding_mask_crop": 4, "output_type": "pt"}, "`output_type` has to be 'pil' but is 'pt'"),
        ({"padding_mask_crop": 4, "mask_image": Image.new("L", (9, 9))}, "leaves nothing to paint anew"),
        ({"image_reference": torch.zeros(1, 64, 64)}, "`image_reference` is packed latents"),
        ({"image_reference": [picture()] * 2}, "`image_reference` has 2 pictures, which can't be shared out to 1"),
    ],
)
def test_refused(pipe, mesh_device, arguments, match):
    free = dram_bytes(mesh_device)
    with pytest.raises((ValueError, TypeError), match=match):
        run(pipe, **arguments)
    assert dram_bytes(mesh_device) == free


class TestPixels:
    @pytest.mark.parametrize("kind", ["pil", "np", "pt"])
    def test_outside_the_mask_are_kept(self, pipe, kind):
        kept = np.asarray(mask()) == 0
        (result,), (edited,) = (run(pipe, output_type=kind, paste=paste) for paste in (True, False))
        before = np.asarray(picture())
        if kind != "pil":
            before = before.astype(np.float32) / 255
        result, edited = (
            np.moveaxis(each.numpy(), 0, -1) if kind == "pt" else np.asarray(each) for each in (result, edited)
        )
        assert np.array_equal(result[kept], before[kept]) and np.array_equal(result[~kept], edited[~kept])
        assert not np.array_equal(edited[kept], before[kept])

    def test_of_a_batch_of_floats(self, pipe):
        """A mask and a picture each."""
        pictures = torch.rand(2, 3, HEIGHT, WIDTH)
        masks = [mask(), mask((40, 40, 70, 60))]
        results = run(pipe, image=pictures, mask_image=masks, prompt=["a", "b"], output_type="pt")
        for result, before, white in zip(results, pictures, masks, strict=True):
            kept = torch.from_numpy(np.array(white) == 0)
            assert torch.equal(result[:, kept], before[:, kept])

    def test_of_a_picture_that_is_resized(self, pipe):
        """The resized picture's; a mask of another size is of all of the picture."""
        (result,) = run(pipe, image=picture(160, 128), mask_image=mask().resize((320, 256)))
        kept = np.asarray(mask()) == 0
        resized = picture(160, 128).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(result)[kept], np.asarray(resized)[kept])


class TestPartAroundTheMask:
    """`padding_mask_crop`, of a picture whose mask has another size."""

    ARGUMENTS = {
        "image": picture(200, 160),
        "mask_image": mask((80, 60, 99, 79), 200, 160).resize((400, 320)),
        "padding_mask_crop": 10,
        "height": HEIGHT,
        "width": WIDTH,
    }

    def test_returns_the_whole_picture(self, pipe):
        """At its own size. What is edited is 40 x 40 pixels and then some, of the picture's aspect ratio."""
        (result,) = run(pipe, **self.ARGUMENTS)
        before, after = np.asarray(picture(200, 160)), np.asarray(result)
        white = np.zeros((160, 200), dtype=bool)
        white[60:80, 80:100] = True
        assert np.array_equal(before[~white], after[~white])
        assert (before[white] != after[white]).mean() > 0.9

    def test_is_an_edit_of_its_own(self, pipe):
        """Of the pixels that the picture has there: without the paste it is that edit's result."""
        box = (65, 50, 115, 90)
        part, white = picture(200, 160).crop(box), mask((80, 60, 99, 79), 200, 160).crop(box)
        (alone,) = run(pipe, image=part, mask_image=white, height=HEIGHT, width=WIDTH, paste=False)
        (result,) = run(pipe, paste=False, **self.ARGUMENTS)
        assert result.size == (WIDTH, HEIGHT) and np.array_equal(np.asarray(result), np.asarray(alone))


class TestSteps:
    @pytest.mark.parametrize("strength,seen", [(1.0, 4), (0.99, 4), (0.75, 3), (0.3, 2), (0.25, 1), (0.01, 1)])
    def test_left_by_strength(self, pipe, strength, seen):
        steps = []
        run(
            pipe,
            num_inference_steps=4,
            strength=strength,
            callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append((step, pipe.num_timesteps)),
        )
        assert steps == [(step, seen) for step in range(seen)]

    def test_callbacks_see_what_is_put_back(self, pipe):
        """In the last step the picture's own latents."""
        seen = []
        result = run(
            pipe,
            output_type="latent",
            callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append(tensors["latents"].clone()),
        )
        assert torch.equal(seen[-1], result)
        kept = torch.from_numpy(np.array(mask()))[::8, ::8] == 0
        latents = torch.nn.functional.pixel_shuffle(result[0].T.reshape(64, HEIGHT // 16, WIDTH // 16), 2)
        encoded = pipe.encode(picture(), _auto_resize=False)[0]
        assert torch.equal(latents[:, kept], encoded[:, kept])

    def test_latents_of_turns(self, pipe):
        """An edit's latents are the next one's picture, and outside both masks stay as they are."""
        encoded = pipe.encode(picture(), _auto_resize=False)
        first = run(pipe, image=encoded, output_type="latent")
        size = {"height": HEIGHT, "width": WIDTH}
        second = run(pipe, image=first, mask_image=mask((0, 0, 7, 7)), output_type="latent", **size)
        changed = (first != second).any(dim=2)[0]
        assert changed.nonzero().flatten().tolist() == [0]
        assert np.asarray(run(pipe, image=first, paste=False, **size)[0]).shape == (HEIGHT, WIDTH, 3)


def test_reference_in_latents(pipe):
    """Is the one of its picture."""
    reference = picture(64, 48)
    latents = pipe.encode(reference, _auto_resize=False)
    pixels, encoded, none = (
        run(pipe, image_reference=each, output_type="latent") for each in (reference, latents, None)
    )
    assert torch.equal(pixels, encoded) and not torch.equal(pixels, none)
