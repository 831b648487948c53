"""Pictures that the model looks at beside the one to edit."""

from collections.abc import Sequence

import PIL.Image
from diffusers.image_processor import VaeImageProcessor

from tt_flux_kontext.inputs import pixel_sizes
from tt_flux_kontext.models.vae import VAEConfig
from tt_flux_kontext.pictures import Pictures, Sized, is_latents, is_packed, read_pictures
from tt_flux_kontext.resolution import REFERENCE_METHODS, own_size, reference_size


def check_method(reference_method: str) -> None:
    """Raises `ValueError` for one that there isn't."""
    if not isinstance(reference_method, str) or reference_method not in REFERENCE_METHODS:
        known = ", ".join(REFERENCE_METHODS)
        raise ValueError(f"`reference_method` must be one of {known} but is {reference_method!r}.")


def reference_inputs(
    image: Sized | None,
    image_reference,
    reference_images,
    vae: VAEConfig,
    *,
    method: str,
    auto_resize: bool,
    background,
    results: int,
) -> list[Sized]:
    """What the model sees of an edit: `image_reference`, or else `image`, and then the others.

    Arguments are the call's, and how many results it has. Raises `TypeError` or `ValueError` for what is no list of
    pictures, and for those that can't be used.
    """
    if reference_images is None:
        reference_images = []
    if not isinstance(reference_images, (list, tuple)):
        kind = type(reference_images).__name__
        raise TypeError(f"`reference_images` has to be a list of pictures but is {kind}.")
    references = [] if image is None else [image]
    if image_reference is not None:
        references = [_read(image_reference, "image_reference", vae, auto_resize, background, results)]
    for i, each in enumerate(reference_images):
        references.append(_read(each, f"reference_images[{i}]", vae, auto_resize, background, 1))
    return [_stitched(references, vae, auto_resize)] if method == "stitch" and len(references) > 1 else references


def _read(image, name: str, vae: VAEConfig, auto_resize: bool, background, results: int) -> Sized:
    """Brought to their own bucket."""
    pictures = read_pictures(image, vae.latent_channels, background, name)
    if is_packed(pictures, vae.latent_channels):
        raise ValueError(
            f"`{name}` is packed latents, which don't tell their shape: pass them as [1, {vae.latent_channels}, height,"
            " width]."
        )
    if results % len(pictures):
        raise ValueError(f"`{name}` has {len(pictures)} pictures, which can't be shared out to {results}.")
    resizable = not is_latents(pictures, vae.latent_channels)
    token = 2 * vae.scale_factor  # pixels along an edge
    size = own_size(pixel_sizes(pictures, vae), token, auto_resize, resizable=resizable, name=name)
    return pictures, size


def _stitched(references: Sequence[Sized], vae: VAEConfig, auto_resize: bool) -> Sized:
    """References side by side, as high as the highest picture, for each picture of the first; the others have one.

    Raises `ValueError` for latents.
    """
    if any(is_latents(pictures, vae.latent_channels) for pictures, _ in references):
        raise ValueError(
            "`reference_method='stitch'` puts pictures side by side, which latents are not: pass pictures, or take "
            "'offset' or 'index'."
        )
    firsts, *others = (_as_pil(pictures) for pictures, _ in references)
    canvases = [_side_by_side([first, *(other[0] for other in others)]) for first in firsts]
    height, width = canvases[0].height, canvases[0].width
    return canvases, reference_size(height, width, 2 * vae.scale_factor, auto_resize)


def _side_by_side(pictures: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    height = max(picture.height for picture in pictures)
    parts = [
        picture.resize((max(1, round(picture.width * height / picture.height)), height), PIL.Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    canvas = PIL.Image.new("RGB", (sum(part.width for part in parts), height))
    left = 0
    for part in parts:
        canvas.paste(part, (left, 0))
        left += part.width
    return canvas


def _as_pil(pictures: Pictures) -> list[PIL.Image.Image]:
    if isinstance(pictures, list):
        return pictures
    pictures = pictures if pictures.min() >= 0 else VaeImageProcessor.denormalize(pictures)
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pictures.clamp(0, 1)))
