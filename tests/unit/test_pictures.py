"""Pictures as people have them: what the model gets of each is the 8-bit RGB picture that was meant."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tt_flux_kontext.pictures import read_pictures, to_rgb

CHANNELS = 16
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
GREY = PICTURE.convert("L")
ORIENTATION = 0x0112


def same(picture: Image.Image, wanted: Image.Image) -> bool:
    return picture.mode == wanted.mode == "RGB" and np.array_equal(np.asarray(picture), np.asarray(wanted))


def saved(picture: Image.Image, kind: str, **options) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    phone = saved(PICTURE, "PNG", exif=exif)
    undo = {6: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_90}
    upright = ImageOps.exif_transpose(phone).convert("RGB")
    if orientation in undo:
        upright = PICTURE.transpose(undo[orientation])
    assert same(to_rgb(phone), upright)


def deep(mode: str) -> Image.Image:
    """GREY in a mode of more than 8 bits."""
    values = np.asarray(GREY)
    if mode.startswith("I;16"):
        return Image.frombytes(mode, GREY.size, (values * np.uint16(257)).astype(">u2" if mode == "I;16B" else "<u2"))
    return Image.fromarray(
        {
            "I of 16 bits": values.astype(np.int32) * 257,
            "I of 31 bits": (values / 255 * (2**31 - 1)).astype(np.int32),
            "I of 8 bits": values.astype(np.int32),
            "F to 1": values.astype(np.float32) / 255,
            "F to 255": values.astype(np.float32),
            "F to 65535": values.astype(np.float32) * 257,
        }[mode]
    )


@pytest.mark.parametrize(
    "mode",
    ["I;16", "I;16L", "I;16B", "I of 16 bits", "I of 31 bits", "I of 8 bits", "F to 1", "F to 255", "F to 65535"],
)
def test_more_than_8_bits(mode):
    assert same(to_rgb(deep(mode)), GREY.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_files_of_16_bits(kind):
    assert same(to_rgb(saved(deep("I;16"), kind)), GREY.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes(mode):
    picture = PICTURE.convert(mode)
    assert same(to_rgb(picture), picture.convert("RGB"))


@pytest.mark.parametrize("background,colour", [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ((1, 2, 3),) * 2])
@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_transparent_pictures_lie_on_the_background(mode, background, colour):
    """One half is clear, over black that is not to be seen; the other is opaque."""
    picture = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    picture.paste((90, 90, 90, 255), (4, 0, 8, 4))
    picture = picture.convert("LA").convert("La") if mode == "La" else picture.convert(mode)
    wanted = Image.new("RGB", (8, 4), colour)
    wanted.paste(to_rgb(picture).getpixel((7, 0)), (4, 0, 8, 4))
    assert same(to_rgb(picture, background), wanted)
    assert wanted.getpixel((7, 0)) == pytest.approx((90, 90, 90), abs=3)  # PA has a palette


@pytest.mark.parametrize("mode,key,white", [("L", 0, 255), ("RGB", (0, 0, 0), 255), ("P", 0, None), ("I;16", 0, 65535)])
def test_one_transparent_colour(mode, key, white):
    picture = Image.new(mode, (4, 4))
    result = to_rgb(saved(picture, "PNG", transparency=key))
    assert same(result, Image.new("RGB", (4, 4), "white"))


@given(alpha=st.integers(0, 255), value=st.integers(0, 255), ground=st.integers(0, 255))
def test_half_transparent(alpha, value, ground):
    picture = Image.new("RGBA", (1, 1), (value, value, value, alpha))
    mixed = (value * alpha + ground * (255 - alpha)) / 255
    assert to_rgb(picture, (ground,) * 3).getpixel((0, 0)) == pytest.approx((mixed,) * 3, abs=1)


@settings(deadline=None)
@given(
    channels=st.sampled_from([1, 2, 3, 4]), height=st.integers(1, 7), width=st.integers(1, 7), batch=st.integers(1, 3)
)
def test_bytes_are_pictures(channels, height, width, batch):
    """uint8 arrays and tensors, alone, in batches and in lists."""
    arrays = np.random.default_rng(0).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    pixels = [array[..., 0] if channels == 1 else array for array in arrays]
    wanted = [to_rgb(Image.fromarray(array)) for array in pixels]
    assert Image.fromarray(pixels[0]).mode == mode
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for image in (arrays, list(arrays), tensors, list(tensors)):
        found = read_pictures(image, CHANNELS)
        assert len(found) == batch and all(map(same, found, wanted))
    assert same(read_pictures(arrays[0], CHANNELS)[0], wanted[0])


def test_classes_of_pil_are_one_kind():
    found = read_pictures([PICTURE, saved(PICTURE, "PNG"), saved(PICTURE, "BMP")], CHANNELS)
    assert all(same(picture, PICTURE) for picture in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats(dtype):
    picture = torch.rand(1, 3, 4, 6, dtype=dtype)
    assert torch.equal(read_pictures(picture, CHANNELS), picture.float())
    latents = 5 * torch.randn(1, CHANNELS, 4, 6, dtype=dtype)
    assert torch.equal(read_pictures(latents, CHANNELS), latents.float())


def spoilt(value: float, *shape: int) -> torch.Tensor:
    tensor = torch.full(shape, 0.5)
    tensor.view(-1)[-1] = value
    return tensor


@pytest.mark.parametrize(
    "image,match",
    [
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
        (torch.zeros(3, 0, 5), "no pixels"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5)), "is no picture"),
        (torch.zeros(5, 5), "one shape is needed"),
        (spoilt(float("nan"), 3, 4, 4), "NaN or infinite"),
        (spoilt(float("inf"), 1, CHANNELS, 4, 4), "NaN or infinite"),
        (spoilt(float("-inf"), 2, 8, 4 * CHANNELS), "NaN or infinite"),
        (spoilt(float("nan"), 3, 4, 4).permute(1, 2, 0).numpy(), "NaN or infinite"),
        (spoilt(200.0, 3, 4, 4), "from 0.5 to 200. Floats are from 0 to 1; pixels from 0 to 255 are uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.full((4, 4, 3), None), "object"),
        (torch.zeros(1, 4, 4, 4), "neither pictures"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 4, 6)], "one shape is needed"),
        ([np.zeros((4, 4, 3)), np.zeros((4, 6, 3))], "one shape is needed"),
        (Image.fromarray(np.full((2, 2), -1, np.int32)), "mode I with values that are negative"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "mode F with values .* no numbers"),
        (Image.fromarray(np.full((2, 2), 1e12, np.float32)), "mode F with values up to 1e\\+12"),
        ("photo.heic", "pillow-heif"),
    ],
)
def test_refused(image, match):
    with pytest.raises((ValueError, TypeError), match=match):
        read_pictures(image, CHANNELS)
