"""Pictures as they come and go: files that strangers made, and files of results."""

from typing import BinaryIO

from PIL import Image, ImageOps

from tt_flux_kontext.credentials import Claim
from tt_flux_kontext.metadata import as_file, with_parameters
from tt_flux_kontext.pictures import to_rgb
from tt_flux_kontext.serving.errors import ApiError, refused

FORMATS = ("PNG", "JPEG", "WEBP")  # no others reach Pillow's decoders


def read_pictures(files: list[BinaryIO], mask: BinaryIO | None, pixels: int) -> tuple[list[Image.Image], Image.Image]:
    """The pictures, upright RGB, and the mask, white where the first picture is to be edited, or None.

    Args:
        files: of which the heads are read first, so that no more than `pixels` are ever decoded.
        mask: with transparency where the picture is to be edited, as OpenAI has it.

    Raises `ApiError` for what is no picture or too large, and for a mask of another size or without transparency.
    """
    opened = [_open(file, "image") for file in files]
    opened_mask = None if mask is None else _open(mask, "mask")
    total = sum(each.width * each.height for each in (*opened, *([opened_mask] if mask else [])))
    if total > pixels:
        message = f"The pictures have {total / 1e6:.1f} million pixels together; {pixels / 1e6:g} million are taken."
        raise ApiError(413, message, param="image", code="image_too_large")
    pictures = [_decoded(picture, to_rgb, "image") for picture in opened]
    if opened_mask is None:
        return pictures, None
    if not opened:
        raise refused("A `mask` is of an `image`, and there is none.", "mask")
    painted = _decoded(opened_mask, _transparent, "mask")
    if painted.size != pictures[0].size:
        sizes = ["{} x {}".format(*each.size) for each in (painted, pictures[0])]
        raise refused(f"`mask` has {sizes[0]} pixels and the first `image` {sizes[1]}; they must be the same.", "mask")
    return pictures, painted


def to_file(
    picture: Image.Image, kind: str, compression: int | None, parameters: str, source: str, claim: Claim | None
) -> bytes:
    """A file of the kind `png`, `jpeg` or `webp`, in which its parameters stand, and that an AI was at work.

    Args:
        compression: from 0 to 100, the size of JPEG and WebP against their quality, in OpenAI's words: 100 is best.
        claim: to sign.
    """
    how = {} if kind == "png" else {"quality": 100 if compression is None else compression}
    return as_file(picture, kind.upper(), claim, **how, **with_parameters(f".{kind}", parameters, source))


def _open(file: BinaryIO, param: str) -> Image.Image:
    """Reads the head alone."""
    try:
        return Image.open(file, formats=FORMATS)
    except Exception:  # of any class, from decoders that were given garbage
        raise refused(f"`{param}` can't be read: pictures are {', '.join(FORMATS)}.", param, "invalid_image") from None


def _decoded(picture: Image.Image, read, param: str) -> Image.Image:
    try:
        return read(picture)
    except Exception as error:
        raise refused(f"`{param}` can't be read as a picture: {error}", param, "invalid_image") from None


def _transparent(picture: Image.Image) -> Image.Image:
    """White where it is transparent, black where it isn't."""
    picture = ImageOps.exif_transpose(picture)
    if not picture.has_transparency_data:
        raise ValueError("it has no transparency, which says where to edit.")
    return ImageOps.invert(picture.convert("RGBA").getchannel("A"))
