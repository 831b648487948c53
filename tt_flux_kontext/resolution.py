"""Sizes, token counts, packing and position ids of an edit: what diffusers' FluxKontextPipeline does, as functions."""

import torch

# Sizes (width, height) that Kontext was trained on. A picture to edit is brought to the one nearest in aspect ratio.
PREFERRED_KONTEXT_RESOLUTIONS = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)
DEFAULT_EDGE = 1024


def output_size(height: int | None, width: int | None, max_area: int, multiple_of: int) -> tuple[int, int]:
    """(height, width) in pixels of the result: the aspect ratio asked for, an area of about `max_area`.

    Each edge is rounded down to `multiple_of`. Raises `ValueError` where one is not positive or nothing is left of it.
    """
    height = DEFAULT_EDGE if height is None else height
    width = DEFAULT_EDGE if width is None else width
    if height < 1 or width < 1 or max_area < 1:
        raise ValueError(f"`height`, `width` and `max_area` must be positive but are {height}, {width} and {max_area}.")
    aspect_ratio = width / height
    size = round((max_area / aspect_ratio) ** 0.5), round((max_area * aspect_ratio) ** 0.5)
    size = tuple(edge // multiple_of * multiple_of for edge in size)
    if not all(size):
        raise ValueError(
            f"A picture of {width} x {height} is too narrow: with an area of {max_area} pixels its shorter edge is "
            f"under {multiple_of} pixels. Ask for an aspect ratio nearer to 1."
        )
    return size


def reference_size(height: int, width: int, multiple_of: int, auto_resize: bool = True) -> tuple[int, int]:
    """(height, width) that a picture to edit is resized to: its bucket by aspect ratio, whatever the result's size.

    The aspect ratio is that of the edges rounded down to `multiple_of`, as in diffusers; where nothing is left of one,
    of the edges themselves. Without `auto_resize` the rounded edges are the size; raises `ValueError` when one is 0.
    """
    rounded = height // multiple_of * multiple_of, width // multiple_of * multiple_of
    if not auto_resize:
        if not all(rounded):
            raise ValueError(
                f"The image is {width} x {height} pixels; without `_auto_resize` both must be at least {multiple_of}."
            )
        return rounded
    aspect_ratio = rounded[1] / rounded[0] if all(rounded) else width / height
    _, width, height = min((abs(aspect_ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    return height // multiple_of * multiple_of, width // multiple_of * multiple_of


def image_ids(rows: int, columns: int, index: int) -> torch.Tensor:
    """Position ids (index, row, column) of tokens, float32 [rows columns, 3]; index 0 is noise, 1 the reference."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, 3)


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, (H / 2) (W / 2), 4 C]: squares of 2 x 2 as tokens, ordered (channel, row, column)."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, (height // 2) * (width // 2), 4 * channels)
