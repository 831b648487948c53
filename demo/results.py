"""Files of results, and a sheet of before and after."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from tt_flux_kontext.metadata import with_parameters


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
