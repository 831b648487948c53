"""What goes with a result: the parameters in its file, and a sheet of before and after."""

import io
from collections.abc import Sequence

from PIL import ExifTags, Image, ImageDraw, PngImagePlugin

_WITH_EXIF = ("JPEG", "WEBP")


def with_parameters(suffix: str, parameters: str) -> dict:
    """Arguments of PIL's `save` that put the parameters into a file of the kind that the suffix names.

    They stand where other programs look for them: in a PNG's text `parameters`, in the EXIF field UserComment of JPEG
    and WebP. Other kinds of file have no place for them.
    """
    kind = Image.registered_extensions().get(suffix.lower())
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("parameters", parameters)
        return {"pnginfo": text}
    if kind in _WITH_EXIF:
        exif = Image.Exif()
        comment = b"UNICODE\0" + parameters.encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        return {"exif": exif}
    return {}


def can_be_saved(suffix: str) -> bool:
    """Whether PIL writes pictures of colours to files of that kind."""
    kind = Image.registered_extensions().get(suffix.lower())
    if kind not in Image.SAVE:
        return False
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), kind, **with_parameters(suffix, "a"))
    except (KeyError, OSError, ValueError):
        return False
    return True


def before_after(before: Image.Image, after: Sequence[Image.Image], prompt: str) -> Image.Image:
    """The pictures side by side at a height that can be seen, the prompt under them."""
    height, margin, line = max(256, after[0].height), 16, 32
    pictures = [p.resize((p.width * height // p.height, height), Image.Resampling.LANCZOS) for p in (before, *after)]
    width = sum(picture.width + margin for picture in pictures) + margin
    sheet = Image.new("RGB", (width, height + 2 * margin + line), "white")
    left = margin
    for picture in pictures:
        sheet.paste(picture, (left, margin))
        left += picture.width + margin
    ImageDraw.Draw(sheet).text((margin, height + margin + line // 4), prompt, fill="black", font_size=18)
    return sheet
