"""FLUX.1 Kontext [dev] on a TT-NN device, with the arguments of diffusers' FluxKontextPipeline."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from tqdm.auto import tqdm
from transformers import CLIPTokenizer, T5TokenizerFast

from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.edit import Edit, Editor, Phase, Text
from tt_flux_kontext.inputs import check_numbers, image_input, text_input
from tt_flux_kontext.pictures import is_latents, prepare
from tt_flux_kontext.precision import BF16, PRECISIONS, Policy
from tt_flux_kontext.residency import EditSize, Models
from tt_flux_kontext.resolution import pack_latents
from tt_flux_kontext.schedule import sigma_schedule

USUAL_EDIT = EditSize(text_tokens=512, image_tokens=2 * 64 * 64, pixels=1024 * 1024)


class FluxKontextPipeline:
    """Edits pictures by instruction, and makes pictures from text, after diffusers' class of that name.

    Args:
        checkpoint: in Hugging Face layout.
        device: an open TT-NN device (`open_device`).
        precision: number formats and math fidelity; by default the most accurate that the device has the memory for,
            with an edit of 1024 x 1024 pixels. The attribute of that name says which.

    Raises `CheckpointError` when a model's files don't fit its config, before anything reaches the device.
    """

    def __init__(self, checkpoint: Checkpoint, device, precision: Policy | None = None):
        folder = checkpoint.folder
        models = Models(checkpoint, device, precision or BF16)
        if precision is None:
            fitting = models.fitting_precision(USUAL_EDIT) or list(PRECISIONS)[-1]
            models = Models(checkpoint, device, PRECISIONS[fitting])
        self.precision = models.precision
        self.vae_config = models.vae_config
        self.transformer_config = models.transformer_config
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.tokenizer_2 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
        self.multiple_of = 2 * self.vae_config.scale_factor  # pixels along the edge of a token
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.multiple_of)
        self.timings: dict[str, float] = {}
        self._editor = Editor(models, self.tokenizer, self.tokenizer_2)
        self._progress_bar_config = {}

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device, precision: str | None = None) -> "FluxKontextPipeline":
        """From a local folder or a hub id. Weights are read when a phase first needs them."""
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"Unknown precision '{precision}': it is one of {', '.join(PRECISIONS)}.")
        return cls(Checkpoint(source), device, PRECISIONS.get(precision))

    def set_progress_bar_config(self, **kwargs) -> None:
        """Of tqdm's bars over the denoising steps and over weights on their way; `disable=True` hides them."""
        self._progress_bar_config = self._editor.models.progress_bar_config = kwargs

    def __call__(
        self,
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
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
        max_area: int = 1024**2,
        _auto_resize: bool = True,
        background: str | tuple[int, int, int] = "white",
        diffusers_sizes: bool = False,
    ) -> FluxPipelineOutput | tuple:
        """Edits `image` by `prompt`; without an image, makes one.

        Args:
            image: PIL image, numpy array [(B,) H, W, 3] or tensor [(B,) 3, H, W], of floats from 0 to 1 or of uint8, a
                list of one kind, latents [B, C, h, w], or packed latents of an earlier edit with the `height` and
                `width` that it had. A picture is turned upright by its EXIF tag and brought to the trained size
                nearest in aspect ratio.
            prompt: for both text encoders, or with `prompt_2` for CLIP alone.
            prompt_2: for T5.
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
            latents: starting noise, packed [B, tokens, channels], in place of the generator's.
            prompt_embeds, pooled_prompt_embeds: [B, S, J] and [B, P], in place of `prompt`; the negative ones likewise.
            output_type: `pil`, `np` [B, H, W, 3], `pt` [B, 3, H, W], or `latent` [B, tokens, channels].
            return_dict: False for a plain tuple.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step; what it
                returns of `latents` and `prompt_embeds` replaces them.
            callback_on_step_end_tensor_inputs: names of those tensors that it gets.
            max_sequence_length: T5 tokens, at most 512.
            max_area: pixels of the result.
            _auto_resize: False keeps the picture's own size, rounded down to whole tokens, where the result has no
                other: one of more than `max_area` pixels is brought to that area.
            background: a colour of PIL's, on which transparent pictures are laid.
            diffusers_sizes: True for diffusers' exact rule: the result is 1024 x 1024 unless `height` and `width` name
                another aspect ratio, always of the area `max_area`, and the picture is brought to no other size than
                its own. Where they differ the model sees the picture shifted and cropped.

        Returns:
            FluxPipelineOutput with `images`, or a tuple. Seconds by phase are in `timings` afterwards.

        Raises:
            ValueError, TypeError: an argument can't be used; nothing was run.
        """
        check_numbers(
            num_inference_steps,
            sigmas,
            num_images_per_prompt,
            max_sequence_length,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        text = text_input(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds)
        negative = _negative_input(
            text,
            true_cfg_scale,
            (negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds),
        )
        batch = len(text) * num_images_per_prompt
        image, size, image_size = image_input(
            image,
            self.vae_config,
            height=height,
            width=width,
            max_area=max_area,
            auto_resize=_auto_resize,
            background=background,
            diffusers_sizes=diffusers_sizes,
        )
        if image is not None:
            if batch % len(image):
                raise ValueError(f"Cannot duplicate `image` of batch size {len(image)} to {batch} results.")
            if not is_latents(image, self.vae_config.latent_channels):
                image = prepare(image, image_size, self.image_processor)
        latents = self._starting_noise(batch, size, generator, latents)
        edit = Edit(
            text=text,
            negative=negative,
            image=image,
            latents=latents,
            size=size,
            sigmas=sigma_schedule(self.scheduler, num_inference_steps, latents.shape[1], sigmas),
            guidance=guidance_scale if self.transformer_config.guidance_embeds else None,
            true_cfg_scale=true_cfg_scale,
            images_per_prompt=num_images_per_prompt,
            max_sequence_length=max_sequence_length,
            callback=partial(callback_on_step_end, self) if callback_on_step_end else None,
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        result = self._run(edit, decode=output_type != "latent")
        if output_type != "latent":
            result = self.image_processor.postprocess(result, output_type=output_type)
        return FluxPipelineOutput(images=result) if return_dict else (result,)

    def _run(self, edit: Edit, decode: bool) -> torch.Tensor:
        """Drives the phases, with a bar over the steps and the seconds of each in `timings`."""
        self.timings = {}
        with tqdm(total=len(edit.sigmas) - 1, **self._progress_bar_config) as bar:
            for event in self._editor.run(edit, decode):
                if isinstance(event, Phase):
                    self.timings[event.name] = self.timings.get(event.name, 0.0) + event.seconds
                    bar.update(1 if event.step else 0)
        return event

    def _starting_noise(self, batch: int, size: tuple[int, int], generator, latents) -> torch.Tensor:
        """float32 [batch, tokens, channels]."""
        height, width = (edge // self.vae_config.scale_factor for edge in size)
        channels = self.transformer_config.in_channels
        wanted = [batch, (height // 2) * (width // 2), channels]
        if latents is not None:
            if list(latents.shape) != wanted:
                raise ValueError(
                    f"`latents` must have the shape {wanted} for {batch} results of {size[1]} x {size[0]} pixels, "
                    f"but it is {list(latents.shape)}."
                )
            return latents.float()
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(
                f"You have passed a list of generators of length {len(generator)}, but requested an effective batch "
                f"size of {batch}. Make sure the batch size matches the length of the generators."
            )
        shape = (batch, channels // 4, height, width)
        return pack_latents(randn_tensor(shape, generator=generator, device=torch.device("cpu")))


def _negative_input(text: Text, true_cfg_scale: float, given: tuple) -> Text | None:
    prompt, prompt_2, embeds, pooled = given
    if true_cfg_scale <= 1 or (prompt is None and embeds is None and pooled is None):
        return None
    if isinstance(prompt, str):
        prompt = [prompt] * len(text)
    if isinstance(prompt_2, str):
        prompt_2 = [prompt_2] * len(text)
    negative = text_input(prompt, prompt_2, embeds, pooled, prefix="negative_")
    if len(negative) != len(text):
        raise ValueError(f"There are {len(text)} prompts and {len(negative)} negative ones; they must be as many.")
    if (negative.embeds is None) != (text.embeds is None):
        raise ValueError("Pass the prompt and the negative prompt in one form, as text or as embeddings.")
    if text.embeds is not None and text.embeds.shape != negative.embeds.shape:
        raise ValueError(
            "`prompt_embeds` and `negative_prompt_embeds` must have the same shape but are "
            f"{list(text.embeds.shape)} and {list(negative.embeds.shape)}."
        )
    return negative
