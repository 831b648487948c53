"""Sizes, token counts, packing and position ids of an edit: what diffusers' FluxKontextPipeline does, as functions."""

from collections.abc import Sequence

import torch
from loguru import logger

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
REFERENCE_METHODS = ("offset", "index", "stitch")
"""How several references are shown to the model: placed side by side, or one behind the other, or as one picture."""
DEFAULT_EDGE = 1024
DEFAULT_AREA = DEFAULT_EDGE**2


def edit_sizes(
    pictures: Sequence[tuple[int, int]],
    height: int | None,
    width: int | None,
    max_area: int,
    multiple_of: int,
    *,
    auto_resize: bool = True,
    diffusers_sizes: bool = False,
    resizable: bool = True,
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """(height, width) in pixels of the result, and of the pictures to edit as the model gets them (None without one).

    A picture's own size is its `reference_size`. The result has it where neither `height` nor `width` is given, as far
    as `max_area` allows; and where the two differ the picture is brought to the result's size, so that the model sees
    all of it at its place. There are two exceptions, in which it keeps its own: under diffusers' exact rule, and when
    it is no longer a picture but latents, that is not `resizable`.

    Args:
        pictures: (height, width) of each.
        height, width, max_area, diffusers_sizes: of the result, see `output_size`.

    Raises `ValueError` for sizes that can't be, and for pictures of different shapes.
    """
    own = own_size(pictures, multiple_of, auto_resize, resizable=resizable) if pictures else None
    if own is None or height or width or diffusers_sizes:
        size = output_size(height, width, max_area, multiple_of, diffusers_sizes)
    elif not resizable or (not auto_resize and own[0] * own[1] <= max_area):
        size = own
    else:
        size = output_size(*own, max_area, multiple_of)
    asked = height or DEFAULT_EDGE, width or DEFAULT_EDGE
    result = f"The result has {size[1]} x {size[0]} pixels"
    if own not in (None, size):
        keeps = diffusers_sizes or not resizable
        fate = "the model sees it shifted, and cropped or with a margin" if keeps else "it is resized to that"
        logger.warning(f"{result}, the picture to edit {own[1]} x {own[0]}: {fate}.")
        own = own if keeps else size
    elif (height or width) and size != asked:
        why = f"the area is `max_area`, edges are multiples of {multiple_of}"
        logger.warning(f"{result}, not {asked[1]} x {asked[0]}: {why}.")
    return size, own


def output_size(
    height: int | None, width: int | None, max_area: int, multiple_of: int, diffusers_sizes: bool = False
) -> tuple[int, int]:
    """(height, width) in pixels of the result: the aspect ratio asked for, an area of about `max_area`.

    Each edge is rounded down to `multiple_of`; one that is None or 0 is 1024 before that. A size that Kontext was
    trained on stays as it is, while `max_area` has its default, which some of these sizes exceed; in diffusers, and
    with `diffusers_sizes`, it is changed like any other. Raises `ValueError` where an edge is negative, or nothing is
    left of it.
    """
    height = height or DEFAULT_EDGE
    width = width or DEFAULT_EDGE
    if height < 1 or width < 1 or max_area < 1:
        raise ValueError(f"`height`, `width` and `max_area` must be positive but are {height}, {width} and {max_area}.")
    if not diffusers_sizes and max_area == DEFAULT_AREA and (width, height) in PREFERRED_KONTEXT_RESOLUTIONS:
        return height // multiple_of * multiple_of, width // multiple_of * multiple_of
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
    """(height, width) of a picture to edit: its bucket by aspect ratio, where the result's size asks for no other.

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


def own_size(
    pictures: Sequence[tuple[int, int]],
    multiple_of: int,
    auto_resize: bool = True,
    *,
    resizable: bool = True,
    name: str = "image",
) -> tuple[int, int]:
    """The `reference_size` of all of an argument's pictures. Raises `ValueError` where they have several."""
    sizes = [reference_size(*picture, multiple_of, auto_resize) if resizable else picture for picture in pictures]
    if len(set(sizes)) > 1:
        shapes = ", ".join(f"{width} x {height}" for height, width in pictures)
        raise ValueError(f"`{name}` has pictures of different shapes ({shapes}). Edit them one by one, or crop them.")
    return sizes[0]


def image_ids(rows: int, columns: int, index: int) -> torch.Tensor:
    """Position ids (index, row, column) of tokens, float32 [rows columns, 3]; index 0 is noise, 1 a reference."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, 3)


def reference_ids(grids: Sequence[tuple[int, int]], method: str) -> torch.Tensor:
    """Position ids of several references of (rows, columns) tokens, one after the other, float32 [tokens, 3].

    With `index` each has an index of its own, from 1 on; else all have index 1, and each next one stands right of or
    below all before, wherever the longer edge of all together is shorter. That is how ComfyUI places them.
    """
    ids, height, width = [], 0, 0
    for number, (rows, columns) in enumerate(grids, 1):
        if method == "index":
            ids.append(image_ids(rows, columns, number))
            continue
        top, left = (0, width) if height + rows > width + columns else (height, 0)
        ids.append(image_ids(rows, columns, 1) + torch.tensor([0, top, left]))
        height, width = max(height, top + rows), max(width, left + columns)
    return torch.cat(ids) if ids else torch.zeros(0, 3)


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, (H / 2) (W / 2), 4 C]: squares of 2 x 2 as tokens, ordered (channel, row, column)."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpack_latents(tokens: torch.Tensor, height: int, width: int, scale_factor: int, name: str) -> torch.Tensor:
    """The inverse of `pack_latents`, of pictures of height x width pixels; `name` is the argument's.

    Raises `ValueError` for tokens of another count.
    """
    batch, count, channels = tokens.shape
    rows, columns = (edge // (2 * scale_factor) for edge in (height, width))
    if count != rows * columns:
        raise ValueError(
            f"`{name}` has {count} tokens, but {width} x {height} pixels have {rows * columns} of {2 * scale_factor} "
            f"x {2 * scale_factor}."
        )
    squares = tokens.reshape(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(batch, channels // 4, 2 * rows, 2 * columns)
