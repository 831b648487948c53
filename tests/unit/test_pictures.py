"""Pictures as people have them: what the model gets of each is the 8-bit RGB picture that was meant."""

import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from PIL import Image, ImageCms, ImageOps

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


# XYZ (D50) of the primaries, as the profiles of Display P3 and of sRGB have them.
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 2.2


def profile(space: bytes = b"RGB ", name: bytes = b"wide") -> bytes:
    """An ICC profile of version 2: P3's primaries, or grey, and a gamma."""

    def xyz(values) -> bytes:
        return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * value) for value in values))

    curve = struct.pack(">4s4xIHxx", b"curv", 1, round(256 * GAMMA))
    tags = {
        b"desc": struct.pack(">4s4xI", b"desc", len(name) + 1) + name + bytes(79),
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"cprt": b"text" + bytes(8),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {primary + b"XYZ": xyz(column) for primary, column in zip((b"r", b"g", b"b"), P3.T)}
        tags |= {primary + b"TRC": curve for primary in (b"r", b"g", b"b")}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", tag, 132 + 12 * len(tags) + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI4s4s4s", size, 0x02400000, b"mntr", space, b"XYZ ").ljust(36, b"\0") + b"acsp"
    return head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + table + body


def from_p3(pixels: np.ndarray) -> np.ndarray:
    """To sRGB, by the definitions."""
    linear = (pixels / 255) ** GAMMA @ P3.T @ np.linalg.inv(SRGB).T
    return 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055).clip(0, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colours_of_a_phone(kind):
    pixels = np.stack(np.meshgrid(*3 * [np.arange(64, 193, 32)], indexing="ij"), -1).reshape(5, 25, 3).astype(np.uint8)
    plain = Image.fromarray(np.repeat(np.repeat(pixels, 8, 0), 8, 1))
    how = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    phone = saved(plain, kind, icc_profile=profile(), **how)
    rgb = to_rgb(phone)
    assert np.abs(np.asarray(rgb) - from_p3(np.asarray(phone))).max() <= 1
    assert np.abs(np.asarray(rgb).astype(int) - np.asarray(plain)).max() > 8
    assert same(to_rgb(rgb), rgb)  # once


def test_profiles_and_transparency():
    alpha = Image.fromarray(np.full((6, 9), 128, dtype=np.uint8))
    half = PICTURE.copy()
    half.putalpha(alpha)
    opaque = to_rgb(saved(PICTURE, "PNG", icc_profile=profile()))
    wanted = np.asarray(opaque) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(np.asarray(to_rgb(saved(half, "PNG", icc_profile=profile()))) - wanted).max() <= 1
    grey = to_rgb(saved(GREY, "PNG", icc_profile=profile(b"GRAY")))
    assert np.ptp(np.asarray(grey), axis=2).max() <= 1 and not same(grey, GREY.convert("RGB"))


def test_profiles_of_srgb_change_nothing():
    for stored in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), profile(name=b"my sRGB")):
        assert same(to_rgb(saved(PICTURE, "PNG", icc_profile=stored)), PICTURE)


@pytest.mark.parametrize(
    "stored,says", [(b"garbage", "can't be used"), (profile(b"GRAY"), "it is of GRAY, and the picture of mode RGB")]
)
def test_profiles_that_can_not_be_used(stored, says):
    said = []
    sink = logger.add(said.append)
    phone = saved(PICTURE, "PNG", icc_profile=stored)
    assert same(to_rgb(phone, name="image"), PICTURE)
    logger.remove(sink)
    assert len(said) == 1 and says in said[0] and "`image`" in said[0]


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
