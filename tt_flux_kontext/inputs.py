"""What a caller may ask of the pipeline: checked, and brought to one form, before anything runs."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from tt_flux_kontext.edit import Text
from tt_flux_kontext.resolution import reference_size

CALLBACK_TENSORS = ("latents", "prompt_embeds")
MAX_SEQUENCE_LENGTH = 512


def text_input(
    prompt: str | Sequence[str] | None,
    prompt_2: str | Sequence[str] | None,
    embeds: torch.Tensor | None,
    pooled: torch.Tensor | None,
    *,
    prefix: str = "",
) -> Text:
    """The prompts, or the embeddings, of a call. `prefix` is "negative_" for the negative ones.

    Raises `ValueError` or `TypeError` when both are given, one is incomplete, or the lists don't agree.
    """
    name, name_2, name_embeds, name_pooled = (
        f"{prefix}{name}" for name in ("prompt", "prompt_2", "prompt_embeds", "pooled_prompt_embeds")
    )
    if embeds is not None or pooled is not None:
        if prompt is not None or prompt_2 is not None:
            given = name if prompt is not None else name_2
            raise ValueError(f"Cannot forward both `{given}` and `{name_embeds}`. Forward one of the two.")
        if embeds is None or pooled is None:
            given, lacking = (name_embeds, name_pooled) if pooled is None else (name_pooled, name_embeds)
            raise ValueError(f"With `{given}`, `{lacking}` of the same prompts must be passed too.")
        if embeds.ndim != 3 or pooled.ndim != 2 or len(embeds) != len(pooled) or not len(embeds):
            raise ValueError(
                f"`{name_embeds}` must be [batch, tokens, features] and `{name_pooled}` [batch, features] of the same "
                f"batch, but they are {list(embeds.shape)} and {list(pooled.shape)}."
            )
        return Text(embeds=embeds, pooled=pooled)
    if prompt is None:
        raise ValueError(f"Provide either `{name}` or `{name_embeds}`. Cannot leave both undefined.")
    clip = _prompts(prompt, name)
    t5 = clip if prompt_2 is None else _prompts(prompt_2, name_2)
    if len(clip) != len(t5):
        raise ValueError(f"`{name}` has {len(clip)} entries and `{name_2}` has {len(t5)}; they must be as many.")
    return Text(clip=clip, t5=t5)


def _prompts(prompt: str | Sequence[str], name: str) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(text, str) for text in prompts):
        raise TypeError(f"`{name}` has to be of type `str` or `list` of `str` but is {type(prompt).__name__}.")
    if not prompts:
        raise ValueError(f"`{name}` is an empty list: there is nothing to do.")
    return list(prompts)


def check_numbers(
    num_inference_steps: int,
    sigmas: Sequence[float] | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    output_type: str,
    callback_tensors: Sequence[str],
) -> None:
    """Raises `ValueError` for the first that can't be."""
    if sigmas is None and num_inference_steps < 1:
        raise ValueError(f"`num_inference_steps` must be at least 1 but is {num_inference_steps}.")
    if sigmas is not None and not len(sigmas):
        raise ValueError("`sigmas` is empty: it takes at least one noise level.")
    if num_images_per_prompt < 1:
        raise ValueError(f"`num_images_per_prompt` must be at least 1 but is {num_images_per_prompt}.")
    if not 1 <= max_sequence_length <= MAX_SEQUENCE_LENGTH:
        raise ValueError(f"`max_sequence_length` must be from 1 to {MAX_SEQUENCE_LENGTH} but is {max_sequence_length}.")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"`output_type` must be pil, np, pt or latent but is {output_type!r}.")
    unknown = [name for name in callback_tensors if name not in CALLBACK_TENSORS]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has to be in {list(CALLBACK_TENSORS)}, but found {unknown}."
        )


def image_input(
    image, processor: VaeImageProcessor, latent_channels: int, multiple_of: int, auto_resize: bool
) -> torch.Tensor:
    """Pictures to edit as float32 [B, 3, H, W] from -1 to 1, at the VAE's size; latents [B, C, h, w] as they are.

    Args:
        image: PIL image, numpy array [(B,) H, W, 3], tensor [(B,) 3, H, W] from 0 to 1, a list of one kind, latents.

    Raises `TypeError` for another kind of input and `ValueError` for pictures that can't be used.
    """
    if isinstance(image, (list, tuple)) and not image:
        raise ValueError("`image` is an empty list. Leave it out to make a picture from text alone.")
    if isinstance(image, (list, tuple)) and len({type(item) for item in image}) > 1:
        kinds = sorted({type(item).__name__ for item in image})
        raise TypeError(f"`image` is a list of mixed kinds ({', '.join(kinds)}). Give pictures of one kind.")
    first = image[0] if isinstance(image, (list, tuple)) else image
    if isinstance(first, torch.Tensor):
        return _tensor_input(image, processor, latent_channels, multiple_of, auto_resize)
    if isinstance(first, PIL.Image.Image):
        pictures = image if isinstance(image, (list, tuple)) else [image]
        pictures = [picture.convert("RGB") for picture in pictures]
        size = reference_size(first.height, first.width, multiple_of, auto_resize)
        return processor.preprocess([processor.resize(picture, *size) for picture in pictures], *size)
    if isinstance(first, np.ndarray):
        pictures = np.concatenate(
            [array if array.ndim == 4 else array[None] for array in map(np.asarray, _listed(image))]
        )
        return _tensor_input(processor.numpy_to_pt(pictures), processor, latent_channels, multiple_of, auto_resize)
    raise TypeError(f"`image` must be PIL, numpy or torch, or a list of one of them, but is {type(first).__name__}.")


def _tensor_input(image, processor, latent_channels, multiple_of, auto_resize) -> torch.Tensor:
    image = torch.cat([tensor if tensor.ndim == 4 else tensor[None] for tensor in _listed(image)]).float()
    if image.ndim != 4 or image.shape[1] not in (3, latent_channels):
        raise ValueError(
            f"`image` of shape {list(image.shape)} is neither pictures [batch, 3, height, width] "
            f"nor latents [batch, {latent_channels}, height, width]."
        )
    if image.shape[1] == latent_channels:
        if image.shape[2] % 2 or image.shape[3] % 2:
            raise ValueError(f"`image` latents must have an even height and width but are {list(image.shape)}.")
        return image
    size = reference_size(image.shape[2], image.shape[3], multiple_of, auto_resize)
    return processor.preprocess(processor.resize(image, *size), *size)


def _listed(image) -> list:
    return list(image) if isinstance(image, (list, tuple)) else [image]
