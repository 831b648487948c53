"""Masks: where a picture is painted anew, the part of it that is edited for that, and the pixels that it keeps."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from tt_flux_kontext.inputs import check_finite, check_flags, check_whole
from tt_flux_kontext.models.vae import VAEConfig
from tt_flux_kontext.pictures import Sized, is_latents, items_of, prepare, upright
from tt_flux_kontext.resolution import pack_latents

Masks = list[PIL.Image.Image | torch.Tensor]
"""White where a picture is painted anew: grey PIL images, or [M, 1, H, W] from 0 to 1. Each is of a size of its own."""

_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601, as PIL makes grey of colours
_TO_BINARY = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
_TO_PIXELS = VaeImageProcessor(vae_scale_factor=1, do_normalize=False)


def check_masked(
    image, mask_image, strength: float, image_reference, padding_mask_crop: int | None, paste: bool, output_type: str
) -> None:
    """Raises `ValueError` or `TypeError` for the first argument of a masked edit that can't be."""
    check_finite(strength=strength)
    check_flags(paste=paste)
    if not 0 <= strength <= 1:
        raise ValueError(f"`strength` must be from 0 to 1 but is {strength}.")
    if mask_image is None:
        unused = {"strength": strength != 1, "image_reference": image_reference is not None}
        for name, given in (unused | {"padding_mask_crop": padding_mask_crop is not None}).items():
            if given:
                raise ValueError(f"`{name}` is for masked edits only: pass `mask_image` with it.")
        return
    if image is None:
        raise ValueError("`mask_image` is the mask of a picture: pass that as `image`.")
    if padding_mask_crop is None:
        return
    check_whole(0, padding_mask_crop=padding_mask_crop)
    for name, value in (("image", image), ("mask_image", mask_image)):
        if not isinstance(value, PIL.Image.Image):
            raise TypeError(
                f"With `padding_mask_crop`, `{name}` has to be one PIL image but is {type(value).__name__}."
            )
    if output_type != "pil":
        raise ValueError(f"With `padding_mask_crop`, `output_type` has to be 'pil' but is {output_type!r}.")


def masked_input(
    image: Sized, mask_image, size: tuple[int, int], padding: int | None, keeps: bool, vae: VAEConfig
) -> tuple[Sized, torch.Tensor, "Paste | None"]:
    """What is edited of a picture, where it is painted anew, bool [M, 1, H, W], and what its results get back.

    Args:
        image, size: the picture, and the result's (height, width).
        padding: pixels around what the mask paints anew, for the part with these alone; None for the whole picture.
        keeps: whether results get back the pixels outside the mask.

    Raises `ValueError` or `TypeError` for a mask or a picture that can't be used.
    """
    pictures, own = image
    if own != size:
        raise ValueError(
            f"With `mask_image` the result has the size of its picture, {own[1]} x {own[0]} pixels, but it is to have "
            f"{size[1]} x {size[0]}: leave out `height`, `width` and `diffusers_sizes`."
        )
    if keeps and is_latents(pictures, vae.latent_channels):
        raise ValueError("`image` is latents, which have no pixels to keep outside the mask: pass `paste=False`.")
    masks = read_masks(mask_image)
    if padding is not None:
        return _part_around(pictures[0], masks, size, padding, keeps)
    mask = fit(masks, size)
    if not keeps:
        return image, mask, None
    pixels = prepare(pictures, size, _TO_PIXELS)
    return image, mask, Paste(pixels if pixels.min() >= 0 else _TO_PIXELS.denormalize(pixels), mask)


def _part_around(
    picture: PIL.Image.Image, masks: Masks, size: tuple[int, int], padding: int, keeps: bool
) -> tuple[Sized, torch.Tensor, "Paste | None"]:
    """The part has the aspect ratio of `size` as far as the picture goes."""
    mask = fit(masks, (picture.height, picture.width))
    _check_not_empty(mask)
    grey = PIL.Image.fromarray(mask[0, 0].numpy()).convert("L")
    box = VaeImageProcessor.get_crop_region(grey, *reversed(size), padding)
    paste = Paste(_TO_PIXELS.preprocess(picture), mask, box) if keeps else None
    return ([picture.crop(box)], size), fit([grey.crop(box)], size), paste


def read_masks(mask_image) -> Masks:
    """Masks in one form, at their own sizes.

    Args:
        mask_image: PIL image, of which the grey counts and not the transparency; array [(B,) H, W (, C)] or tensor
            [(B, (C,)) H, W] of up to 4 channels, of floats from 0 to 1, of bool, of integers up to 1 or up to 255; or
            a list of one kind.

    Raises `TypeError` for another kind of input and `ValueError` for what is no mask.
    """
    items, kind = items_of(mask_image, "mask_image")
    if kind is PIL.Image.Image:
        return [_grey(upright(item, "mask_image")) for item in items]
    if kind is np.ndarray:
        return [_from_tensor(_from_numpy(item)) for item in items]
    if kind is not torch.Tensor:
        raise TypeError(
            f"`mask_image` must be PIL, numpy or torch, or a list of one of them, but is {kind.__name__}. Files are "
            "opened with PIL.Image.open."
        )
    return [_from_tensor(item.detach().cpu()) for item in items]


def fit(masks: Masks, size: tuple[int, int]) -> torch.Tensor:
    """Brought to `size` (height, width) as diffusers does, bool [M, 1, H, W]: True from half white on."""
    return torch.cat([_TO_BINARY.preprocess(mask, *size) for mask in masks]) > 0


def to_rows(mask: torch.Tensor, scale_factor: int, channels: int, results: int) -> torch.Tensor:
    """For packed latents, float32 [M, N, 4 C]: the pixel where a latent begins decides for it, as in diffusers.

    Args:
        mask: bool [M, 1, H, W].
        scale_factor: pixels along the edge of a latent.
        channels: of latents.
        results: of the edit.

    Raises `ValueError` for a mask without a latent to paint anew, or when the results can't share the masks.
    """
    if results % len(mask):
        raise ValueError(f"`mask_image` has {len(mask)} masks, which {results} results can't share evenly.")
    latents = mask[..., ::scale_factor, ::scale_factor]
    _check_not_empty(latents, scale_factor)
    return pack_latents(latents.float().expand(-1, channels, -1, -1))


def _check_not_empty(mask: torch.Tensor, grid: int = 1) -> None:
    """`grid`: pixels from one value of the mask to the next."""
    if not mask.flatten(1).any(dim=1).all():
        where = f", where it meets a grid of {grid} x {grid} pixels" if grid > 1 else ""
        raise ValueError(
            f"`mask_image` leaves nothing to paint anew: what is white in it is, not what is transparent{where}."
        )


@dataclass(frozen=True)
class Paste:
    """The pixels that results get back.

    Attributes:
        pictures: float32 [P, 3, H, W] from 0 to 1; result i has those of number i modulo P.
        mask: bool [M, 1, H, W], False where they count.
        box: (left, upper, right, lower) of the part that was edited; None for all of it.
    """

    pictures: torch.Tensor
    mask: torch.Tensor
    box: tuple[int, int, int, int] | None = None

    def over(self, results: torch.Tensor) -> torch.Tensor:
        """Results [B, 3, h, w] with the pixels around and in them, [B, 3, H, W]; all from 0 to 1."""
        pasted = []
        for i, result in enumerate(results):
            picture, mask = self.pictures[i % len(self.pictures)], self.mask[i % len(self.mask)]
            pasted.append(torch.where(mask, self._at_its_place(result, picture) if self.box else result, picture))
        return torch.stack(pasted)

    def _at_its_place(self, part: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        left, upper, right, lower = self.box
        (part,) = _TO_PIXELS.numpy_to_pil(_TO_PIXELS.pt_to_numpy(part[None]))
        whole = picture.clone()
        whole[:, upper:lower, left:right] = _TO_PIXELS.preprocess(part, lower - upper, right - left)[0]
        return whole


def _grey(picture: PIL.Image.Image) -> PIL.Image.Image:
    """In a mode that diffusers takes, and without transparency, which would count once it is resized."""
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    return picture if picture.mode in ("1", "P") else picture.convert("L")


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    """[(B,) H, W (, C)] -> [(B, C,) H, W]."""
    try:
        tensor = torch.from_numpy(np.array(array))
    except TypeError as error:
        raise TypeError(f"`mask_image` is an array of {array.dtype}, not of floats, integers or bool.") from error
    with_channels = tensor.ndim == 4 or (tensor.ndim == 3 and tensor.shape[-1] <= 4)
    tensor = tensor.movedim(-1, -3) if with_channels else tensor
    return tensor[None] if with_channels and tensor.ndim == 3 else tensor


def _from_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """[(B, (C,)) H, W] -> [B, 1, H, W], from 0 to 1."""
    shape = list(tensor.shape)
    if tensor.ndim not in (2, 3, 4) or not tensor.numel():
        raise ValueError(f"`mask_image` of shape {shape} is no mask: it has to be [height, width], or several of them.")
    if tensor.ndim < 4:
        tensor = tensor.reshape(-1, 1, *shape[-2:])
    if tensor.shape[1] > 4:
        raise ValueError(f"`mask_image` of shape {shape} has {tensor.shape[1]} channels: a mask is grey.")
    if tensor.is_complex():
        raise TypeError(f"`mask_image` is of {tensor.dtype}, not of floats, integers or bool.")
    values, white = tensor.float(), 1
    if not tensor.is_floating_point() and values.max() > 1:
        white = 255
    if not (values.min() >= 0 and values.max() <= 1.001 * white):
        raise ValueError(
            f"`mask_image` has values from {values.min():g} to {values.max():g}. Floats are from 0 to 1; integers from "
            "0 to 1 or from 0 to 255."
        )
    grey = values[:, :1] if values.shape[1] < 3 else torch.einsum("bchw,c->bhw", values[:, :3], _LUMA)[:, None]
    return grey / white
