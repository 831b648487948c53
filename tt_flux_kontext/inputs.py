"""What a caller may ask of the pipeline: checked, and brought to one form, before anything runs."""

from collections.abc import Sequence

import torch

from tt_flux_kontext.edit import Text
from tt_flux_kontext.models.vae import VAEConfig
from tt_flux_kontext.pictures import Pictures, is_latents, is_packed, read_pictures
from tt_flux_kontext.resolution import DEFAULT_AREA, edit_sizes, output_size, unpack_latents

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
    image,
    vae: VAEConfig,
    *,
    height: int | None = None,
    width: int | None = None,
    max_area: int = DEFAULT_AREA,
    auto_resize: bool = True,
    background="white",
    diffusers_sizes: bool = False,
) -> tuple[Pictures | None, tuple[int, int], tuple[int, int] | None]:
    """Pictures to edit in one form, or None; the result's size, and that of the pictures once they are prepared.

    Arguments are those of the pipeline's call. Raises `TypeError` for another kind of input and `ValueError` for
    pictures and sizes that can't be used.
    """
    token = 2 * vae.scale_factor  # pixels along an edge
    rule = {"auto_resize": auto_resize, "diffusers_sizes": diffusers_sizes}
    if image is None:
        return None, *edit_sizes([], height, width, max_area, token, **rule)
    pictures = read_pictures(image, vae.latent_channels, background)
    if is_packed(pictures, vae.latent_channels):
        if not (height and width):
            raise ValueError(
                "`image` is packed latents, which don't tell their shape: pass their `height` and `width`."
            )
        size = output_size(height, width, max_area, token, diffusers_sizes)
        pictures = unpack_latents(pictures, *size, vae.scale_factor, "image")
    latents = is_latents(pictures, vae.latent_channels)
    if latents:
        sizes = [tuple(edge * vae.scale_factor for edge in pictures.shape[2:])]
    elif isinstance(pictures, list):
        sizes = [(picture.height, picture.width) for picture in pictures]
    else:
        sizes = [tuple(pictures.shape[2:])]
    return pictures, *edit_sizes(sizes, height, width, max_area, token, resizable=not latents, **rule)
