"""Files that strangers made."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tt_flux_kontext.serving.errors import ApiError
from tt_flux_kontext.serving.pictures import read_pictures

PIXELS = 10**6


def file(picture: Image.Image, kind: str = "PNG", **how) -> io.BytesIO:
    saved = io.BytesIO()
    picture.save(saved, kind, **how)
    saved.seek(0)
    return saved


def bomb(width: int, height: int) -> io.BytesIO:
    """A PNG of some KB that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))))


@pytest.mark.parametrize("width, height", [(1001, 1000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_bombs(width, height, monkeypatch):
    """Refused by their heads, before any decoder runs."""
    monkeypatch.setattr(Image.Image, "load", lambda picture: pytest.fail("it was decoded"))
    with pytest.raises(ApiError) as caught:
        read_pictures([bomb(width, height)], None, PIXELS)
    assert caught.value.status in (400, 413)


def test_pixels_of_all_pictures_count():
    picture, mask = Image.new("RGB", (600, 600)), Image.new("RGBA", (600, 600))
    for files, painted in (([picture] * 3, None), ([picture] * 2, mask)):
        with pytest.raises(ApiError, match="1.1 million pixels together; 1 million are taken"):
            read_pictures([file(each) for each in files], painted and file(painted), PIXELS)


@pytest.mark.parametrize("cut", [0, 8, 40, 100, -64])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_torn_files(kind, cut):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with pytest.raises(ApiError) as caught:
        read_pictures([io.BytesIO(file(noise, kind).getvalue()[:cut])], None, PIXELS)
    assert caught.value.status == 400 and caught.value.code == "invalid_image"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "EPS"])
def test_other_formats(kind):
    """None of their decoders is for strangers."""
    with pytest.raises(ApiError, match="pictures are PNG, JPEG, WEBP"):
        read_pictures([file(Image.new("RGB", (32, 32)), kind)], None, PIXELS)


def test_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    (picture,), mask = read_pictures([file(Image.new("L", (32, 16)), "JPEG", exif=exif)], None, PIXELS)
    assert picture.size == (16, 32) and picture.mode == "RGB" and mask is None


class TestMasks:
    def test_transparent_is_white(self):
        alpha = Image.linear_gradient("L").resize((32, 32))
        mask = Image.new("RGBA", (32, 32))
        mask.putalpha(alpha)
        _, painted = read_pictures([file(Image.new("RGB", (32, 32)))], file(mask), PIXELS)
        assert painted.mode == "L" and np.array_equal(np.asarray(painted), 255 - np.asarray(alpha))

    @pytest.mark.parametrize(
        "images, mask, says",
        [
            (1, Image.new("RGB", (32, 32)), "it has no transparency"),
            (1, Image.new("RGBA", (32, 16)), "`mask` has 32 x 16 pixels and the first `image` 32 x 32"),
            (0, Image.new("RGBA", (32, 32)), "A `mask` is of an `image`"),
        ],
    )
    def test_refused(self, images, mask, says):
        with pytest.raises(ApiError, match=says) as caught:
            read_pictures([file(Image.new("RGB", (32, 32))) for _ in range(images)], file(mask), PIXELS)
        assert caught.value.param == "mask"
