"""A call of the pipeline: its arguments checked, and what they ask for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from tt_flux_kontext.inputs import (
    check_choices,
    check_finite,
    check_flags,
    check_unused,
    check_whole,
    generator_input,
    image_input,
    levels_input,
    lora_scale_input,
    negative_input,
    noise_input,
    text_input,
)
from tt_flux_kontext.lora.adapters import Adapters
from tt_flux_kontext.masks import Paste, check_masked, masked_input, to_rows
from tt_flux_kontext.models.transformer import TransformerConfig
from tt_flux_kontext.models.vae import VAEConfig
from tt_flux_kontext.pictures import is_latents, prepare
from tt_flux_kontext.references import check_method, reference_inputs
from tt_flux_kontext.request import Edit, Mask
from tt_flux_kontext.residency import EditSize, check_host_memory
from tt_flux_kontext.resolution import pack_latents
from tt_flux_kontext.schedule import first_step, sigma_schedule

HOST_BYTES_A_PIXEL = 64  # of a result: float32 as decoded, stacked, and on the way to 8 bits
HOST_BYTES_A_STEP = 100  # of levels, as Python's numbers and in the scheduler's tensors


class Pipeline(Protocol):
    """What a call has to know of the pipeline that it is to; `FluxKontextPipeline` says what each of these is."""

    scheduler: "diffusers.FlowMatchEulerDiscreteScheduler"
    image_processor: VaeImageProcessor
    vae_config: VAEConfig
    transformer_config: TransformerConfig
    vae_scale_factor: int
    multiple_of: int
    step_cache: "diffusers.MagCacheConfig | None"
    interrupt: bool
    _adapters: Adapters

    def reserve(self, edit: Edit) -> EditSize: ...


@dataclass(frozen=True)
class Call:
    """A call whose arguments are known to be right: what to do, and in what form its result is wanted."""

    edit: Edit
    size: EditSize
    guidance_scale: float
    output_type: str
    return_dict: bool
    paste: Paste | None


def read_call(
    pipe: Pipeline,
    image=None,
    prompt: str | list[str] | None = None,
    prompt_2: str | list[str] | None = None,
    negative_prompt: str | list[str] | None = None,
    negative_prompt_2: str | list[str] | None = None,
    true_cfg_scale: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 28,
    sigmas: list[float] | None = None,
    guidance_scale: float = 3.5,
    num_images_per_prompt: int = 1,
    generator: torch.Generator | list[torch.Generator] | None = None,
    latents: torch.Tensor | None = None,
    prompt_embeds: torch.Tensor | None = None,
    pooled_prompt_embeds: torch.Tensor | None = None,
    ip_adapter_image: None = None,
    ip_adapter_image_embeds: None = None,
    negative_ip_adapter_image: None = None,
    negative_ip_adapter_image_embeds: None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
    negative_pooled_prompt_embeds: torch.Tensor | None = None,
    output_type: str = "pil",
    return_dict: bool = True,
    joint_attention_kwargs: dict | None = None,
    callback_on_step_end: Callable | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
    max_sequence_length: int = 512,
    max_area: int = 1024**2,
    _auto_resize: bool = True,
    background: str | tuple[int, int, int] = "white",
    diffusers_sizes: bool = False,
    mask_image=None,
    strength: float = 1.0,
    padding_mask_crop: int | None = None,
    image_reference=None,
    paste: bool = True,
    reference_images: Sequence | None = None,
    reference_method: str = "offset",
) -> Call:
    """Edits `image` by `prompt`; without an image, makes one.

    A call of the pipeline. `dispatch` is the same as a generator: it yields each phase when it is on its way to the
    device, waits for it when asked for the next one, and returns what the call returns.

    Args:
        image: PIL image, numpy array [(B,) H, W, 3] or tensor [(B,) 3, H, W], of floats from 0 to 1 or of uint8, a
            list of one kind, latents [B, C, h, w], or packed latents of an earlier edit with the `height` and
            `width` that it had. A picture is turned upright by its EXIF tag, its colours to sRGB by its profile, and
            it is brought to the trained size nearest in aspect ratio.
        prompt: for both text encoders, or with `prompt_2` for CLIP alone.
        prompt_2: for T5; empty, it is `prompt`.
        negative_prompt, negative_prompt_2: what to avoid; used when `true_cfg_scale` is above 1.
        true_cfg_scale: weight of classifier-free guidance, at the price of a second pass a step.
        height, width: of the result in pixels. Without both it has the size that the picture is brought to. With
            one (the other is then 1024) it has that aspect ratio and the area `max_area`, or exactly the trained
            size that they name; and a picture of another size is brought to the result's, with a warning.
        num_inference_steps: denoising steps.
        sigmas: noise levels before the size-dependent shift, in place of even ones.
        guidance_scale: of the distilled guidance.
        num_images_per_prompt: results per prompt, from different noise.
        generator: one, or one per result. The noise is that of diffusers in float32.
        latents: starting noise, packed [B, tokens, 4 C] or [B, C, h, w], in place of the generator's. With a mask it
            is the start at any `strength`.
        prompt_embeds, pooled_prompt_embeds: [B, S, J] and [B, P], in place of `prompt`; the negative ones likewise.
        output_type: `pil`, `np` [B, H, W, 3], `pt` [B, 3, H, W], or `latent` [B, tokens, channels].
        return_dict: False for a plain tuple.
        ip_adapter_image and its like: None, as there are no image adapters.
        joint_attention_kwargs: {"scale": s} for s times the weights of the adapters at work.
        callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step; what it
            returns of `latents` and `prompt_embeds` replaces them, and so do changes of `tensors` in place.
            `pipeline.interrupt = True` leaves out the steps that follow.
        callback_on_step_end_tensor_inputs: names of those tensors that it gets.
        max_sequence_length: T5 tokens, at most 512.
        max_area: pixels of the result.
        _auto_resize: False keeps the picture's own size, rounded down to whole tokens, where the result has no
            other: one of more than `max_area` pixels is brought to that area.
        background: a colour of PIL's, on which transparent pictures are laid.
        diffusers_sizes: True for diffusers' exact rule: the result is 1024 x 1024 unless `height` and `width` name
            another aspect ratio, always of the area `max_area`, and the picture is brought to no other size than
            its own. Where they differ the model sees the picture shifted and cropped.
        mask_image: white where the picture is painted anew, black where it stays, of any kind and size of pictures; one
            for all, or one per picture. Grey counts from one half on, transparency doesn't. For the model the edge is
            on a grid of 8 pixels. The result has the picture's size.
        strength: of a masked edit, from 0 to 1: below 1 it begins with the picture under some noise, and leaves out
            the steps before.
        padding_mask_crop: edits only the part of the picture around the mask, with as many pixels on each side, at a
            size of its own, and returns the whole picture at the size that it came in. PIL images only.
        image_reference: pictures or latents for the model to look at in a masked edit, in place of `image`.
        paste: False leaves the pixels outside a mask as the VAE gives them back, and with `padding_mask_crop` returns
            the part alone. Where `image` is latents there are no pixels to keep, and none in results that are.
        reference_images: a list of more pictures for the model to look at beside `image`, each of any kind or latents
            [1, C, h, w]. They are brought to their own trained size, and all results share them.
        reference_method: how the model sees several: `offset` side by side, without overlap, `index` one behind the
            other, or `stitch` as one picture with all of them in a row. Kontext was trained on one.

    Returns:
        FluxPipelineOutput with `images`, or a tuple. Seconds by phase are in `timings` afterwards.

    Raises:
        ValueError, TypeError: an argument can't be used; nothing was run.
        DoesNotFit: the device or this machine has too little memory; nothing was run.
        FloatingPointError: the latents became NaN or infinite.
        RuntimeError: called by its own callback.
    """
    # All that is said above is of the pipeline's `__call__` and `dispatch`, which take these arguments.
    levels = None if sigmas is None else levels_input(sigmas)
    if levels is None:
        check_whole(num_inference_steps=num_inference_steps)
    check_whole(num_images_per_prompt=num_images_per_prompt, max_sequence_length=max_sequence_length)
    check_finite(guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale)
    check_flags(return_dict=return_dict)
    check_method(reference_method)
    check_choices(max_sequence_length, output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
    check_unused(
        ip_adapter_image=ip_adapter_image,
        ip_adapter_image_embeds=ip_adapter_image_embeds,
        negative_ip_adapter_image=negative_ip_adapter_image,
        negative_ip_adapter_image_embeds=negative_ip_adapter_image_embeds,
    )
    lora_scale = lora_scale_input(joint_attention_kwargs, pipe._adapters.scaled)
    widths = pipe.transformer_config.joint_attention_dim, pipe.transformer_config.pooled_projection_dim
    text = text_input(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds, widths)
    negatives = negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds
    negative = negative_input(text, true_cfg_scale, *negatives, widths)
    results = len(text) * num_images_per_prompt
    generator = generator_input(generator, results)
    check_masked(image, mask_image, strength, image_reference, padding_mask_crop, paste, output_type)
    vae = pipe.vae_config
    pictures, size, image_size = image_input(
        image,
        vae,
        height=height,
        width=width,
        max_area=max_area,
        auto_resize=_auto_resize,
        background=background,
        diffusers_sizes=diffusers_sizes,
        results=results,
    )
    steps = num_inference_steps if levels is None else len(levels)
    first = first_step(steps, strength)
    if pipe.step_cache and pipe.step_cache.num_inference_steps != steps - first:
        raise ValueError(
            f"The step cache is for {pipe.step_cache.num_inference_steps} steps but the edit has {steps - first}: "
            f"enable it with MagCacheConfig(num_inference_steps={steps - first}, ...), or disable it."
        )
    check_host_memory(
        HOST_BYTES_A_PIXEL * results * size[0] * size[1] + HOST_BYTES_A_STEP * steps,
        f"An edit of {results} x {size[1]} x {size[0]} pixels in {steps} steps",
    )
    shape = noise_shape(pipe, results, size)
    if latents is not None:
        latents = noise_input(latents, shape, size)
    image = None if pictures is None else (pictures, image_size)
    painted = pasted = mask = None
    if mask_image is not None:
        keeps = paste and output_type != "latent"
        image, painted, pasted = masked_input(image, mask_image, size, padding_mask_crop, keeps, vae)
    sized = reference_inputs(
        image,
        image_reference,
        reference_images,
        vae,
        method=reference_method,
        auto_resize=_auto_resize,
        background=background,
        results=results,
    )
    if painted is not None:
        rows = to_rows(painted, vae.scale_factor, vae.latent_channels, results)
        mask = Mask(rows, seen=sized[0] is image, mixed=latents is None)
        sized = sized if mask.seen else [image, *sized]
    edit = Edit(
        text=text,
        negative=negative,
        size=size,
        picture_sizes=[size for _, size in sized],
        sigmas=sigma_schedule(pipe.scheduler, steps, shape[1], levels)[first:],
        guidance=guidance_scale if pipe.transformer_config.guidance_embeds else None,
        true_cfg_scale=true_cfg_scale,
        images_per_prompt=num_images_per_prompt,
        max_sequence_length=max_sequence_length,
        callback=partial(callback_on_step_end, pipe) if callback_on_step_end else None,
        callback_tensors=callback_on_step_end_tensor_inputs or (),
        interrupted=lambda: pipe.interrupt,
        decode=output_type != "latent",
        step_cache=pipe.step_cache,
        lora_scale=lora_scale,
        reference_method=reference_method,
        mask=mask,
    )
    edit_size = pipe.reserve(edit)  # refuses what is too large before it is made
    if latents is None:
        latents = _noise(pipe, shape, size, generator)
    pictures = [
        pictures if is_latents(pictures, vae.latent_channels) else prepare(pictures, size, pipe.image_processor)
        for pictures, size in sized
    ]
    edit = replace(edit, latents=latents, pictures=pictures)
    return Call(edit, edit_size, guidance_scale, output_type, return_dict, pasted)


def noise_shape(pipe: Pipeline, results: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """(results, tokens, channels) of packed latents."""
    rows, columns = (edge // pipe.multiple_of for edge in size)
    return results, rows * columns, pipe.transformer_config.in_channels


def _noise(pipe: Pipeline, packed: tuple[int, int, int], size: tuple[int, int], generator) -> torch.Tensor:
    """As diffusers draws it: float32, packed."""
    results, _, channels = packed
    shape = (results, channels // 4, *(edge // pipe.vae_scale_factor for edge in size))
    return pack_latents(randn_tensor(shape, generator=generator, device=torch.device("cpu")))
