"""A sheet of before and after."""

from collections.abc import Sequence

from PIL import Image, ImageDraw


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
