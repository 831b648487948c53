"""Pictures to edit, as people have them, brought to what the VAE takes."""

import io

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import torch
from diffusers.image_processor import VaeImageProcessor
from loguru import logger

KINDS = (PIL.Image.Image, np.ndarray, torch.Tensor)
_FULL = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": None, "F": None}
"""What white is in modes of more than 8 bits. `I` and `F` have no fixed range."""
_RANGES = (255, 65535, 2**31 - 1)
_GREY = ("1", "L", "LA", "La")
_PROFILED = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}
"""By a profile's colour space, the mode of pictures that it describes."""

Pictures = list[PIL.Image.Image] | torch.Tensor
"""RGB pictures; or float32 pictures [B, 3, H, W], or latents [B, C, h, w]."""
Sized = tuple[Pictures, tuple[int, int]]
"""Pictures, and the size (height, width) in pixels that they are brought to."""


def read_pictures(image, latent_channels: int, background="white", name: str = "image") -> Pictures:
    """Pictures in one form, at their own sizes. Packed latents are `[B, tokens, 4 C]` as they came.

    Args:
        image: PIL image; array [(B,) H, W, 3] or tensor [(B,) 3, H, W], of floats from 0 to 1 or (any channels that a
            picture has) uint8; a list of one kind; latents [B, C, h, w], or packed.
        background: a colour of PIL's, on which transparent pictures are laid.
        name: the argument's.

    Raises `TypeError` for another kind of input and `ValueError` for pictures that can't be used.
    """
    items, kind = items_of(image, name)
    if kind is PIL.Image.Image:
        return [to_rgb(picture, background, name) for picture in items]
    if kind is np.ndarray:
        items = [_from_numpy(array, name) for array in items]
    elif kind is not torch.Tensor:
        raise TypeError(
            f"`{name}` must be PIL, numpy or torch, or a list of one of them, but is {kind.__name__}. Files are "
            "opened with PIL.Image.open, HEIC files with the plugin of the package pillow-heif."
        )
    if is_packed(image, latent_channels):
        return float_tensor(image, name)
    shapes = {tuple(item.shape[-3:]) for item in items}
    if len(shapes) > 1 or not all(item.ndim in (3, 4) for item in items):
        raise ValueError(
            f"`{name}` has pictures of shapes {[list(item.shape) for item in items]}: one shape is needed."
        )
    tensor = torch.cat([item if item.ndim == 4 else item[None] for item in items])
    if not tensor.numel():
        raise ValueError(f"`{name}` of shape {list(tensor.shape)} has no pixels.")
    if tensor.dtype == torch.uint8 and tensor.shape[1] <= 4:
        return [to_rgb(_from_bytes(picture), background, name) for picture in tensor]
    if not tensor.is_floating_point():
        raise TypeError(f"`{name}` is of {tensor.dtype}. Pictures are uint8 from 0 to 255, or floats from 0 to 1.")
    if tensor.shape[1] not in (3, latent_channels):
        raise ValueError(
            f"`{name}` of shape {list(tensor.shape)} is neither pictures [batch, 3, height, width] "
            f"nor latents [batch, {latent_channels}, height, width]."
        )
    tensor = float_tensor(tensor, name)
    if tensor.shape[1] == latent_channels:
        check_even(tensor, name)
    elif tensor.abs().max() > 1.001:
        raise ValueError(
            f"`{name}` has values from {tensor.min():g} to {tensor.max():g}. Floats are from 0 to 1; pixels from 0 to "
            "255 are uint8."
        )
    return tensor


def items_of(value, name: str) -> tuple[list, type]:
    """What a list has, or the only one, and of which of KINDS, or else of which type, they are.

    Raises `ValueError` for none and `TypeError` for several kinds.
    """
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items:
        raise ValueError(f"`{name}` is an empty list. Leave it out if there is no picture.")
    kinds = {next((kind for kind in KINDS if isinstance(item, kind)), type(item)) for item in items}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"`{name}` is a list of mixed kinds ({names}). Give pictures of one kind.")
    return items, kinds.pop()


def is_packed(image, latent_channels: int) -> bool:
    """Whether these are packed latents [B, tokens, 4 C]. What could be one picture [3, H, W] is one."""
    return (
        isinstance(image, torch.Tensor)
        and image.ndim == 3
        and image.shape[0] != 3
        and image.shape[2] == 4 * latent_channels
    )


def is_latents(pictures: Pictures, latent_channels: int) -> bool:
    """Whether they went through the VAE already."""
    return isinstance(pictures, torch.Tensor) and pictures.shape[1] == latent_channels


def prepare(pictures: Pictures, size: tuple[int, int], processor: VaeImageProcessor) -> torch.Tensor:
    """Float32 [B, 3, H, W] from -1 to 1, brought to `size` (height, width) as diffusers does."""
    if isinstance(pictures, list):
        return processor.preprocess([processor.resize(picture, *size) for picture in pictures], *size)
    return processor.preprocess(processor.resize(pictures, *size), *size)


def check_even(latents: torch.Tensor, name: str) -> None:
    """Raises `ValueError` for maps that can't be packed."""
    if latents.shape[2] % 2 or latents.shape[3] % 2:
        raise ValueError(f"Latents in `{name}` must have an even height and width but are {list(latents.shape)}.")


def float_tensor(tensor, name: str) -> torch.Tensor:
    """In float32. Raises `TypeError` or `ValueError` for what is no tensor of finite floats."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"`{name}` has to be a tensor of floats but is {kind}.")
    tensor = tensor.detach().to("cpu", torch.float32)
    if not tensor.isfinite().all():
        raise ValueError(f"`{name}` has values that are NaN or infinite.")
    return tensor


def to_rgb(picture: PIL.Image.Image, background="white", name: str = "image") -> PIL.Image.Image:
    """A picture upright (EXIF), in sRGB (ICC) of 8 bits a channel, without transparency.

    Raises `ValueError` for one of no pixels.
    """
    picture = _in_srgb(upright(picture, name), name)
    if picture.has_transparency_data:
        if picture.mode == "La":  # has no other way to RGBA
            picture = picture.convert("LA")
        ground = PIL.Image.new("RGBA", picture.size, background)
        picture = PIL.Image.alpha_composite(ground, picture.convert("RGBA"))
    return picture.convert("RGB")


def upright(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Turned by its EXIF tag, in 8 bits a channel. Raises `ValueError` for one of no pixels."""
    if not picture.width or not picture.height:
        raise ValueError(f"`{name}` is a picture of {picture.width} x {picture.height} pixels: there is nothing in it.")
    picture = PIL.ImageOps.exif_transpose(picture)
    return _to_eight_bits(picture, name) if picture.mode in _FULL else picture


def _in_srgb(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """With the colours that its profile gives it, such as those of a phone's Display P3."""
    stored = picture.info.get("icc_profile")
    if not stored:
        return picture
    try:
        profile = PIL.ImageCms.ImageCmsProfile(io.BytesIO(stored))
        if "sRGB" in PIL.ImageCms.getProfileDescription(profile):
            return picture
        mode = _PROFILED.get(space := profile.profile.xcolor_space.strip())
        if mode is None or (mode == "CMYK") != (picture.mode == "CMYK") or mode == "L" and picture.mode not in _GREY:
            raise ValueError(f"it is of {space}, and the picture of mode {picture.mode}")
        srgb = PIL.ImageCms.createProfile("sRGB")
        result = PIL.ImageCms.profileToProfile(picture.convert(mode), profile, srgb, outputMode="RGB")
    except (PIL.ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning(f"`{name}`: its colour profile can't be used ({error}), and its colours are taken for sRGB.")
        return picture
    if picture.has_transparency_data:
        result.putalpha(picture.convert("LA" if picture.mode == "La" else "RGBA").getchannel("A"))
    return result


def _to_eight_bits(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """White becomes 255: in modes without a fixed range, the least usual one that holds all values."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"`{name}` is a picture of mode {picture.mode} with values that are negative or no numbers.")
    ranges = (1, *_RANGES) if picture.mode == "F" else _RANGES
    white = _FULL[picture.mode] or next((top for top in ranges if values.max() <= top), None)
    if white is None:
        raise ValueError(f"`{name}` is a picture of mode {picture.mode} with values up to {values.max():g}.")
    grey = PIL.Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    key = picture.info.get("transparency")
    if key is None:
        return grey
    return PIL.Image.merge("LA", (grey, PIL.Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))


def _from_numpy(array: np.ndarray, name: str) -> torch.Tensor:
    """[..., H, W, C] -> [..., C, H, W]."""
    if array.ndim not in (3, 4):
        raise ValueError(
            f"`{name}` of shape {list(array.shape)} is no picture: arrays are [(batch,) height, width, 3]."
        )
    try:
        return torch.from_numpy(np.array(array)).movedim(-1, -3)
    except TypeError as error:
        raise TypeError(f"`{name}` is an array of {array.dtype}. Pictures are uint8, or floats from 0 to 1.") from error


def _from_bytes(pixels: torch.Tensor) -> PIL.Image.Image:
    """uint8 [1 to 4, H, W]: grey, grey and alpha, RGB, RGBA."""
    array = pixels.permute(1, 2, 0).cpu().numpy()
    return PIL.Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))
