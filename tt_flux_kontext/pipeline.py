"""Edits a picture by an instruction: FLUX.1 Kontext [dev] on a TT-NN device, from prompt and picture to picture.

The arguments are those of diffusers' FluxKontextPipeline. An edit is a row of phases; each owns its weights on the
device, and frees them where the device can't hold all models at once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from loguru import logger
from tqdm.auto import tqdm
from transformers import CLIPTokenizer, T5TokenizerFast

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.inputs import Text, check_numbers, image_input, text_input
from tt_flux_kontext.models.clip import CLIPTextEncoder, clip_config
from tt_flux_kontext.models.layers import upload
from tt_flux_kontext.models.modulation import Modulation, ModulationTable
from tt_flux_kontext.models.t5 import T5Encoder, t5_config
from tt_flux_kontext.models.transformer import Positions, Transformer, TransformerConfig
from tt_flux_kontext.models.vae import Decoder, Encoder, VAEConfig
from tt_flux_kontext.models.weights import Weights, survey
from tt_flux_kontext.precision import BF16, PRECISIONS, Precision
from tt_flux_kontext.resolution import image_ids, output_size, pack_latents
from tt_flux_kontext.schedule import sigma_schedule

WORKSPACE = 2_500_000_000  # bytes of DRAM for activations: a 1024 x 1024 VAE decode takes most


@dataclass(frozen=True)
class Phase:
    """A finished part of an edit. `step` counts denoising steps from 1 to `steps`; it is 0 in other phases."""

    name: str
    seconds: float
    step: int = 0
    steps: int = 0


@dataclass
class _Edit:
    """One call of the pipeline: what it was asked for, then what its phases made of that."""

    text: Text
    negative: Text | None
    image: torch.Tensor | None
    latents: torch.Tensor
    size: tuple[int, int]
    sigmas: list[float]
    guidance: float | None
    true_cfg_scale: float
    images_per_prompt: int
    max_sequence_length: int
    output_type: str
    callback: Callable | None
    callback_tensors: Sequence[str]
    result: object = None


@dataclass
class _Condition:
    """A prompt on the device: context [1, 1, T, J], pooled [1, 1, 1, P], and its modulation of all steps."""

    context: "ttnn.Tensor"
    pooled: "ttnn.Tensor"
    table: ModulationTable | None = None


class FluxKontextPipeline:
    """Image editing and text to image with FLUX.1 Kontext, after diffusers' class of that name.

    Args:
        checkpoint: in Hugging Face layout.
        device: an open TT-NN device (`open_device`).
        precision: number formats and math fidelity.

    Raises `CheckpointError` when a model's files don't fit its config, before anything reaches the device.
    """

    def __init__(self, checkpoint: Checkpoint, device: "ttnn.MeshDevice", precision: Precision = BF16):
        self.device = device
        self.precision = precision
        vae = VAEConfig.from_dict(checkpoint.config("vae", "AutoencoderKL"))
        transformer = TransformerConfig.from_dict(checkpoint.config("transformer", "FluxTransformer2DModel"))
        t5 = t5_config(checkpoint.config("text_encoder_2", "T5EncoderModel"))
        clip = clip_config(checkpoint.config("text_encoder", "CLIPTextModel"))
        _check_fit(vae, transformer, t5, clip)
        self.vae_config, self.transformer_config = vae, transformer
        self._models = {
            "clip": ("text_encoder", CLIPTextEncoder, clip),
            "t5": ("text_encoder_2", T5Encoder, t5),
            "vae encoder": ("vae", Encoder, vae),
            "modulation": ("transformer", Modulation, transformer),
            "transformer": ("transformer", Transformer, transformer),
            "vae decoder": ("vae", Decoder, vae),
        }
        self._tensors = {component: checkpoint.tensors(component) for component, *_ in self._models.values()}
        total = 0
        for component, tensors in self._tensors.items():
            models = [(model, config) for name, model, config in self._models.values() if name == component]
            total += sum(survey(models, tensors, precision))
        self._keeps_weights = total + WORKSPACE < dram_bytes(device)[1]
        self._resident = {}

        folder = checkpoint.folder
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.tokenizer_2 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
        self.multiple_of = 2 * vae.scale_factor
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.multiple_of)
        self.timings: dict[str, float] = {}
        self._progress_bar_config = {}

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: "ttnn.MeshDevice", precision: str = BF16.name
    ) -> "FluxKontextPipeline":
        """From a local folder or a hub id. Weights are read when a phase first needs them."""
        if precision not in PRECISIONS:
            raise ValueError(f"Unknown precision '{precision}': it is one of {', '.join(PRECISIONS)}.")
        return cls(Checkpoint(source), device, PRECISIONS[precision])

    def set_progress_bar_config(self, **kwargs) -> None:
        """Of tqdm's bar over the denoising steps; `disable=True` hides it."""
        self._progress_bar_config = kwargs

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
    ) -> FluxPipelineOutput | tuple:
        """Edits `image` by `prompt`; without an image, makes one.

        Args:
            image: PIL image, numpy array [(B,) H, W, 3] or tensor [(B,) 3, H, W] from 0 to 1, a list of one kind, or
                latents [B, C, h, w] of an earlier edit. It is brought to the trained size nearest in aspect ratio.
            prompt: for both text encoders, or with `prompt_2` for CLIP alone.
            prompt_2: for T5.
            negative_prompt, negative_prompt_2: what to avoid; used when `true_cfg_scale` is above 1.
            true_cfg_scale: weight of classifier-free guidance, at the price of a second pass a step.
            height, width: pixels, of which the aspect ratio counts: the area is `max_area`. 1024 by default.
            num_inference_steps: denoising steps.
            sigmas: noise levels before the size-dependent shift, in place of even ones.
            guidance_scale: of the distilled guidance.
            num_images_per_prompt: results per prompt, from different noise.
            generator: one, or one per result. The noise is that of diffusers in float32.
            latents: starting noise, packed [B, tokens, channels], in place of the generator's.
            prompt_embeds, pooled_prompt_embeds: [B, S, J] and [B, P], in place of `prompt`; the negative ones likewise.
            output_type: `pil`, `np` [B, H, W, 3], `pt` [B, 3, H, W], or `latent` [B, tokens, channels].
            return_dict: False for a plain tuple.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after each step; what it returns
                of `latents` and `prompt_embeds` replaces them.
            callback_on_step_end_tensor_inputs: names of those tensors that it gets.
            max_sequence_length: T5 tokens, at most 512.
            max_area: pixels of the result.
            _auto_resize: False keeps the picture's own size, rounded down to whole tokens.

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
        negative = self._negative_input(
            text,
            true_cfg_scale,
            (negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds),
        )
        size = output_size(height, width, max_area, self.multiple_of)
        batch = len(text) * num_images_per_prompt
        if image is not None:
            image = image_input(
                image, self.image_processor, self.vae_config.latent_channels, self.multiple_of, _auto_resize
            )
            if batch % len(image):
                raise ValueError(f"Cannot duplicate `image` of batch size {len(image)} to {batch} results.")
        latents = self._starting_noise(batch, size, generator, latents)
        edit = _Edit(
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
            output_type=output_type,
            callback=callback_on_step_end,
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        self.timings = {}
        with tqdm(total=len(edit.sigmas) - 1, **self._progress_bar_config) as bar:
            for phase in self._phases(edit):
                self.timings[phase.name] = self.timings.get(phase.name, 0.0) + phase.seconds
                bar.update(1 if phase.step else 0)
        return FluxPipelineOutput(images=edit.result) if return_dict else (edit.result,)

    def _phases(self, edit: _Edit) -> Iterator[Phase]:
        """Runs an edit part by part; its result is in `edit.result` after the last one."""
        clock = _Clock(self.device)
        pooled = self._encode_clip(edit)
        yield clock.phase("clip")
        contexts = self._encode_t5(edit)
        conditions = [_Condition(*pair) for pair in zip(contexts, pooled, strict=True)]
        yield clock.phase("t5")
        references = self._encode_image(edit)
        yield clock.phase("vae encoder")
        self._modulate(edit, conditions)
        yield clock.phase("modulation")

        transformer = self._model("transformer")
        positions = transformer.positions(self._image_ids(edit), conditions[0].context.shape[2])
        latents = [upload(row[None, None], self.device, ttnn.float32) for row in edit.latents]
        steps = len(edit.sigmas) - 1
        yield clock.phase("transformer weights")
        for step in range(steps):
            self._denoise(transformer, edit, step, conditions, references, positions, latents)
            if edit.callback:
                self._call_back(edit, step, conditions, latents)
            yield clock.phase("step", step + 1, steps)
        del transformer, positions
        self._release("transformer")

        edit.result = self._decode(edit, latents)
        yield clock.phase("vae decoder")

    def _encode_clip(self, edit: _Edit) -> "list[ttnn.Tensor]":
        """Pooled prompts [1, 1, 1, P], the negative ones after the others."""
        texts = [text for text in (edit.text, edit.negative) if text]
        pooled = [row for text in texts if text.pooled is not None for row in text.pooled]
        if pooled:
            return [upload(row[None, None, None], self.device, ttnn.bfloat16) for row in pooled]
        prompts = [prompt for text in texts for prompt in text.clip]
        length = self.tokenizer.model_max_length
        model = self._model("clip")
        result = [model(ids) for ids in _token_ids(self.tokenizer, prompts, length)]
        del model
        self._release("clip")
        return result

    def _encode_t5(self, edit: _Edit) -> "list[ttnn.Tensor]":
        """Contexts [1, 1, T, J], the negative ones after the others."""
        texts = [text for text in (edit.text, edit.negative) if text]
        embeds = [rows for text in texts if text.embeds is not None for rows in text.embeds]
        if embeds:
            return [upload(rows[None, None], self.device, ttnn.bfloat16) for rows in embeds]
        prompts = [prompt for text in texts for prompt in text.t5]
        model = self._model("t5")
        result = [model(ids) for ids in _token_ids(self.tokenizer_2, prompts, edit.max_sequence_length)]
        del model
        self._release("t5")
        return result

    def _encode_image(self, edit: _Edit) -> "list[ttnn.Tensor]":
        """Packed reference latents [1, 1, R, C], one per picture."""
        if edit.image is None:
            return []
        if edit.image.shape[1] == self.vae_config.latent_channels:
            return [upload(row[None, None], self.device, ttnn.bfloat16) for row in pack_latents(edit.image)]
        model = self._model("vae encoder")
        result = [model(picture) for picture in edit.image]
        del model
        self._release("vae encoder")
        return result

    def _modulate(self, edit: _Edit, conditions: list[_Condition]) -> None:
        model = self._model("modulation")
        for condition in conditions:
            condition.table = model(edit.sigmas[:-1], edit.guidance, condition.pooled)
        del model
        self._release("modulation", always=True)

    def _denoise(self, transformer, edit, step, conditions, references, positions: Positions, latents) -> None:
        """One Euler step of all results, in place in `latents`."""
        interval = edit.sigmas[step + 1] - edit.sigmas[step]
        prompts = len(edit.text)
        for p in range(prompts):
            pairs = [(condition.context, condition.table.step(step)) for condition in conditions[p::prompts]]
            for i in range(p * edit.images_per_prompt, (p + 1) * edit.images_per_prompt):
                noise = ttnn.typecast(latents[i], ttnn.bfloat16)
                reference = references[i % len(references)] if references else None
                velocities = [transformer(noise, reference, context, positions, row) for context, row in pairs]
                velocity = velocities[0]
                if len(velocities) == 2:
                    towards = ttnn.multiply(ttnn.subtract(velocity, velocities[1]), edit.true_cfg_scale)
                    velocity = ttnn.add(velocities[1], towards)
                latents[i] = ttnn.add(latents[i], ttnn.multiply(velocity, interval))

    def _call_back(self, edit: _Edit, step: int, conditions: list[_Condition], latents: list) -> None:
        prompts = conditions[: len(edit.text)]
        tensors = {
            "latents": lambda: torch.cat([ttnn.to_torch(x)[0] for x in latents]),
            "prompt_embeds": lambda: torch.cat(
                [ttnn.to_torch(prompt.context)[0].float() for prompt in prompts for _ in range(edit.images_per_prompt)]
            ),
        }
        timestep = torch.tensor(edit.sigmas[step] * self.scheduler.config.num_train_timesteps)
        given = {name: tensors[name]() for name in edit.callback_tensors}
        changed = edit.callback(self, step, timestep, given) or {}
        if changed.get("latents") is not None:
            latents[:] = [upload(row[None, None], self.device, ttnn.float32) for row in changed["latents"]]
        if changed.get("prompt_embeds") is not None:
            rows = changed["prompt_embeds"][:: edit.images_per_prompt]
            for prompt, row in zip(prompts, rows, strict=True):
                prompt.context = upload(row[None, None], self.device, ttnn.bfloat16)

    def _decode(self, edit: _Edit, latents: list):
        if edit.output_type == "latent":
            return torch.cat([ttnn.to_torch(x)[0] for x in latents])
        model = self._model("vae decoder")
        pictures = torch.stack([model(x, *edit.size) for x in latents])
        del model
        self._release("vae decoder")
        return self.image_processor.postprocess(pictures, output_type=edit.output_type)

    def _model(self, name: str):
        """A model with its weights on the device."""
        if name not in self._resident:
            component, model_class, config = self._models[name]
            weights = Weights(self._tensors[component], self.precision, self.device)
            self._resident[name] = model_class(config, weights)
        return self._resident[name]

    def _release(self, name: str, *, always: bool = False) -> None:
        """Frees a model's weights, where the device can't keep them all or they are of no further use."""
        if always or not self._keeps_weights:
            del self._resident[name]

    def _negative_input(self, text: Text, true_cfg_scale: float, given: tuple) -> Text | None:
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

    def _image_ids(self, edit: _Edit) -> torch.Tensor:
        """Position ids of the noise and the reference tokens."""
        height, width = (edge // self.multiple_of for edge in edit.size)
        ids = [image_ids(height, width, index=0)]
        if edit.image is not None:
            latents = edit.image.shape[1] == self.vae_config.latent_channels
            edge = 2 if latents else self.multiple_of
            ids.append(image_ids(edit.image.shape[2] // edge, edit.image.shape[3] // edge, index=1))
        return torch.cat(ids)


class _Clock:
    """Seconds between phases, all queued work of the device included."""

    def __init__(self, device: "ttnn.MeshDevice"):
        self.device = device
        self.start = time.perf_counter()

    def phase(self, name: str, step: int = 0, steps: int = 0) -> Phase:
        ttnn.synchronize_device(self.device)
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        return Phase(name, seconds, step, steps)


def _token_ids(tokenizer, prompts: list[str], length: int) -> torch.Tensor:
    """int64 [B, length], padded; what doesn't fit is cut off with a warning."""
    whole = tokenizer(prompts).input_ids
    for prompt, ids in zip(prompts, whole, strict=True):
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            logger.warning(f"The prompt {prompt[:40]!r}... is longer than {length} tokens. Cut off: {lost!r}")
    return tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def _check_fit(vae: VAEConfig, transformer: TransformerConfig, t5, clip) -> None:
    """Raises `CheckpointError` where the models of a checkpoint can't work together."""
    for what, given, wanted in (
        ("transformer's in_channels", transformer.in_channels, 4 * vae.latent_channels),
        ("transformer's joint_attention_dim", transformer.joint_attention_dim, t5.d_model),
        ("transformer's pooled_projection_dim", transformer.pooled_projection_dim, clip.hidden_size),
    ):
        if given != wanted:
            raise CheckpointError(f"The {what} is {given}, but its neighbour in the pipeline gives {wanted}.")
