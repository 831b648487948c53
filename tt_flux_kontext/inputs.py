"""What a caller may ask of the pipeline: checked, and brought to one form, before anything runs."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import PIL.Image
import torch
from loguru import logger

from tt_flux_kontext.models.vae import VAEConfig
from tt_flux_kontext.pictures import Pictures, check_even, float_tensor, is_latents, is_packed, read_pictures
from tt_flux_kontext.request import Text
from tt_flux_kontext.resolution import DEFAULT_AREA, edit_sizes, output_size, pack_latents, unpack_latents

CALLBACK_TENSORS = ("latents", "prompt_embeds")
MAX_SEQUENCE_LENGTH = 512
LARGEST = 2**62  # of numbers, so that arithmetic with them stays within floats


def text_input(
    prompt: str | Sequence[str] | None,
    prompt_2: str | Sequence[str] | None,
    embeds: torch.Tensor | None,
    pooled: torch.Tensor | None,
    widths: tuple[int, int],
    *,
    prefix: str = "",
) -> Text:
    """The prompts, or the embeddings, of a call.

    Args:
        widths: features of T5's and of CLIP's embeddings.
        prefix: "negative_" for the negative ones.

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
        embeds, pooled = float_tensor(embeds, name_embeds), float_tensor(pooled, name_pooled)
        if embeds.ndim != 3 or pooled.ndim != 2 or len(embeds) != len(pooled) or not embeds.numel():
            raise ValueError(
                f"`{name_embeds}` must be [batch, tokens, features] and `{name_pooled}` [batch, features] of the same "
                f"batch, but they are {list(embeds.shape)} and {list(pooled.shape)}."
            )
        if (embeds.shape[2], pooled.shape[1]) != widths:
            raise ValueError(
                f"`{name_embeds}` and `{name_pooled}` have {embeds.shape[2]} and {pooled.shape[1]} features, but this "
                f"transformer takes {widths[0]} and {widths[1]}."
            )
        return Text(embeds=embeds, pooled=pooled)
    if prompt is None:
        raise ValueError(f"Provide either `{name}` or `{name_embeds}`. Cannot leave both undefined.")
    clip = _prompts(prompt, name)
    if prompt_2 is None or (isinstance(prompt_2, (str, list, tuple)) and not prompt_2):
        t5 = clip
    else:
        t5 = _prompts(prompt_2, name_2) * (len(clip) if isinstance(prompt_2, str) else 1)
    if len(clip) != len(t5):
        raise ValueError(f"`{name}` has {len(clip)} entries and `{name_2}` has {len(t5)}; they must be as many.")
    return Text(clip=clip, t5=t5)


def negative_input(
    text: Text,
    true_cfg_scale: float,
    prompt: str | Sequence[str] | None,
    prompt_2: str | Sequence[str] | None,
    embeds: torch.Tensor | None,
    pooled: torch.Tensor | None,
    widths: tuple[int, int],
) -> Text | None:
    """The negative prompts of `text`, as many, where there is guidance by them; a warning where one lacks the other.

    Raises `ValueError` or `TypeError` as `text_input` does, and when they don't agree with `text`.
    """
    if prompt is None and embeds is None and pooled is None:
        if prompt_2 is not None or true_cfg_scale != 1:
            given = "true_cfg_scale" if prompt_2 is None else "negative_prompt_2"
            logger.warning(f"`{given}` has no effect without `negative_prompt` or `negative_prompt_embeds`.")
        return None
    if isinstance(prompt, str):
        prompt = [prompt] * len(text)
    negative = text_input(prompt, prompt_2, embeds, pooled, widths, prefix="negative_")
    if len(negative) != len(text):
        raise ValueError(f"There are {len(text)} prompts and {len(negative)} negative ones; they must be as many.")
    if text.embeds is not None and negative.embeds is not None and text.embeds.shape != negative.embeds.shape:
        raise ValueError(
            "`prompt_embeds` and `negative_prompt_embeds` must have the same shape but are "
            f"{list(text.embeds.shape)} and {list(negative.embeds.shape)}."
        )
    if true_cfg_scale <= 1:
        logger.warning(f"The negative prompt has no effect: `true_cfg_scale` is {true_cfg_scale}, not above 1.")
        return None
    return negative


def _prompts(prompt: str | Sequence[str], name: str) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(text, str) for text in prompts):
        raise TypeError(f"`{name}` has to be of type `str` or `list` of `str` but is {type(prompt).__name__}.")
    if not prompts:
        raise ValueError(f"`{name}` is an empty list: there is nothing to do.")
    return list(prompts)


def check_whole(least: int | None = 1, **values) -> None:
    """Raises `TypeError` or `ValueError` for the first that is no whole number, or less than `least`."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"`{name}` has to be a whole number but is {value!r}.")
        if least is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least} but is {value}.")
        if abs(value) > LARGEST:
            raise ValueError(f"`{name}` must be at most {LARGEST}.")


def check_finite(**values) -> None:
    """Raises `TypeError` or `ValueError` for the first that is no number, or NaN or infinite."""
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"`{name}` has to be a number but is {value!r}.")
        if not abs(value) <= LARGEST:
            raise ValueError(f"`{name}` must be finite but is {value}.")


def check_unused(**values) -> None:
    """Raises `ValueError` for the first that diffusers would use and this pipeline can't."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, dict) and not value):
            raise ValueError(f"`{name}` is not supported: it has to be None.")


def lora_scale_input(joint_attention_kwargs, adapters: Sequence[str]) -> float:
    """The scale of adapters in a call. Raises `TypeError` or `ValueError` for other entries of those arguments."""
    if joint_attention_kwargs is None:
        return 1.0
    if not isinstance(joint_attention_kwargs, dict):
        raise TypeError(f"`joint_attention_kwargs` has to be a dict but is {joint_attention_kwargs!r}.")
    others = [name for name in joint_attention_kwargs if name != "scale"]
    if others:
        raise ValueError(f"`joint_attention_kwargs` can have `scale`, of adapters, but it has {others}.")
    scale = joint_attention_kwargs.get("scale", 1.0)
    check_finite(scale=scale)
    if scale != 1 and not adapters:
        logger.warning("`joint_attention_kwargs` has no effect: no adapter is at work.")
    return float(scale)


def check_flags(**values) -> None:
    """Raises `TypeError` for the first that is neither True nor False, nor 1 or 0."""
    for name, value in values.items():
        if not isinstance(value, Integral | np.bool_) or value not in (0, 1):
            raise TypeError(f"`{name}` has to be True or False but is {value!r}.")


def check_choices(max_sequence_length: int, output_type: str, callback, callback_tensors: Sequence[str] | None) -> None:
    """Raises `ValueError` or `TypeError` for the first that can't be."""
    if max_sequence_length > MAX_SEQUENCE_LENGTH:
        raise ValueError(f"`max_sequence_length` must be from 1 to {MAX_SEQUENCE_LENGTH} but is {max_sequence_length}.")
    check_output_type(output_type, "latent")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback_on_step_end` has to be a function but is {type(callback).__name__}.")
    if callback_tensors is None:
        return
    if not isinstance(callback_tensors, (list, tuple)):
        raise TypeError(f"`callback_on_step_end_tensor_inputs` has to be a list of names but is {callback_tensors!r}.")
    unknown = [name for name in callback_tensors if not isinstance(name, str) or name not in CALLBACK_TENSORS]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has to be in {list(CALLBACK_TENSORS)}, but found {unknown}."
        )


def check_output_type(output_type: str, *more: str) -> None:
    """Raises `ValueError` for one that there isn't."""
    known = "pil", "np", "pt", *more
    if not isinstance(output_type, str) or output_type not in known:
        raise ValueError(f"`output_type` must be one of {', '.join(known)} but is {output_type!r}.")


def levels_input(sigmas) -> list[float]:
    """Noise levels of a call. Raises `TypeError` or `ValueError` for what is none."""
    try:
        levels = [float(level) for level in sigmas]
    except (TypeError, ValueError) as error:
        raise TypeError(f"`sigmas` has to be a list of numbers but is {sigmas!r}.") from error
    if not levels:
        raise ValueError("`sigmas` is empty: it takes at least one noise level.")
    for level in levels:
        if not 0 <= level <= 1:
            raise ValueError(f"`sigmas` must be from 0 to 1 but has {level}.")
    return levels


def generator_input(generator, results: int) -> torch.Generator | list[torch.Generator] | None:
    """Raises `TypeError` or `ValueError` for what is neither one generator nor one per result."""
    if generator is None:
        return None
    several = isinstance(generator, (list, tuple))
    if not all(isinstance(one, torch.Generator) for one in (generator if several else [generator])):
        raise TypeError("`generator` has to be a torch.Generator, or a list of one per result.")
    if several and len(generator) != results:
        raise ValueError(
            f"You have passed a list of generators of length {len(generator)}, but requested an effective batch "
            f"size of {results}. Make sure the batch size matches the length of the generators."
        )
    return list(generator) if several else generator


def noise_input(latents: torch.Tensor, wanted: tuple[int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """Packed latents in float32, of packed ones or [B, C, h, w].

    Raises `TypeError` or `ValueError` for those that don't have the packed shape `wanted`, or are no numbers.
    """
    latents = float_tensor(latents, "latents")
    if latents.ndim == 4:
        check_even(latents, "latents")
        latents = pack_latents(latents)
    if tuple(latents.shape) != wanted:
        raise ValueError(
            f"`latents` must have the shape {list(wanted)} for {wanted[0]} results of {size[1]} x {size[0]} pixels, "
            f"but it is {list(latents.shape)}."
        )
    return latents


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
    results: int | None = None,
) -> tuple[Pictures | None, tuple[int, int], tuple[int, int] | None]:
    """Pictures to edit in one form, or None; the result's size, and that of the pictures once they are prepared.

    Arguments are those of the pipeline's call, and how many results it has. Packed latents are of a picture of `height`
    x `width` pixels, or of the result that these two and `max_area` name, and their result has that size. Raises
    `TypeError` for another kind of input and `ValueError` for pictures and sizes that can't be used.
    """
    height, width = (0 if edge is None else edge for edge in (height, width))
    check_whole(None, max_area=max_area, height=height, width=width)
    check_flags(_auto_resize=auto_resize, diffusers_sizes=diffusers_sizes)
    check_colour(background)
    token = 2 * vae.scale_factor  # pixels along an edge
    rule = {"auto_resize": auto_resize, "diffusers_sizes": diffusers_sizes}
    if image is None:
        return None, *edit_sizes([], height, width, max_area, token, **rule)
    pictures = read_pictures(image, vae.latent_channels, background)
    if results and results % len(pictures):
        raise ValueError(
            f"Cannot duplicate `image` of batch size {len(pictures)} to {results} results: each has one picture."
        )
    if is_packed(pictures, vae.latent_channels):
        if not (height and width):
            raise ValueError(
                "`image` is packed latents, which don't tell their shape: pass their `height` and `width`."
            )
        size = height, width
        if (height // token) * (width // token) != pictures.shape[1]:
            size = output_size(height, width, max_area, token, diffusers_sizes)
        pictures = unpack_latents(pictures, *size, vae.scale_factor, "image")
        if not diffusers_sizes:
            height = width = None  # theirs
    latents = is_latents(pictures, vae.latent_channels)
    sizes = pixel_sizes(pictures, vae)
    return pictures, *edit_sizes(sizes, height, width, max_area, token, resizable=not latents, **rule)


def pixel_sizes(pictures: Pictures, vae: VAEConfig) -> list[tuple[int, int]]:
    """(height, width) of pictures, or of those that latents are of."""
    if isinstance(pictures, list):
        return [(picture.height, picture.width) for picture in pictures]
    scale = vae.scale_factor if is_latents(pictures, vae.latent_channels) else 1
    return [tuple(edge * scale for edge in pictures.shape[2:])]


def check_colour(background) -> None:
    """Raises `ValueError` for what is none of PIL's."""
    try:
        PIL.Image.new("RGB", (1, 1), background)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"`background` has to be a colour, such as 'white' or (255, 255, 255): {error}.") from error
