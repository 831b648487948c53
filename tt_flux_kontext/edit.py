"""An edit as a row of phases, one after the other on the device."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from loguru import logger

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.modulation import ModulationTable
from tt_flux_kontext.models.weights import upload
from tt_flux_kontext.residency import EditSize, Models
from tt_flux_kontext.resolution import image_ids, pack_latents


@dataclass(frozen=True)
class Phase:
    """A finished part of an edit. `step` counts denoising steps from 1 to `steps`; it is 0 in other phases."""

    name: str
    seconds: float
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Text:
    """Prompts for both encoders, or embeddings in their place. Either way one entry per prompt."""

    clip: list[str] | None = None
    t5: list[str] | None = None
    embeds: torch.Tensor | None = None  # [B, S, J]
    pooled: torch.Tensor | None = None  # [B, P]

    def __len__(self) -> int:
        return len(self.embeds if self.clip is None else self.clip)


@dataclass(frozen=True)
class Edit:
    """What is to be done.

    Attributes:
        text, negative: prompts; the negative ones, as many, for classifier-free guidance.
        image: pictures [B, 3, H, W] from -1 to 1 or latents [B, C, h, w]; result i is made from number i modulo B.
        latents: starting noise, float32 [results, N, C]; results of one prompt stand together.
        size: (height, width) of the result in pixels.
        sigmas: noise levels, one more than steps.
        guidance: distilled guidance scale, or None where the transformer embeds none.
        callback: (step, timestep 0 to 1000, tensors) -> tensors to replace, after each step.
    """

    text: Text
    negative: Text | None
    image: torch.Tensor | None
    latents: torch.Tensor
    size: tuple[int, int]
    sigmas: Sequence[float]
    guidance: float | None
    true_cfg_scale: float
    images_per_prompt: int
    max_sequence_length: int
    callback: Callable | None
    callback_tensors: Sequence[str]

    @property
    def texts(self) -> list[Text]:
        return [self.text, self.negative] if self.negative else [self.text]


@dataclass
class Condition:
    """A prompt on the device: context [1, 1, T, J], pooled [1, 1, 1, P], and its modulation of all steps."""

    context: "ttnn.Tensor"
    pooled: "ttnn.Tensor"
    table: ModulationTable | None = None


class Editor:
    """Runs edits with the models of a checkpoint.

    Args:
        models: of a checkpoint, brought to the device when asked for.
        tokenizer, tokenizer_2: of CLIP and T5, from transformers.
    """

    def __init__(self, models: Models, tokenizer, tokenizer_2):
        self.models = models
        self.device = models.device
        self.tokenizer = tokenizer
        self.tokenizer_2 = tokenizer_2

    def run(self, edit: Edit, decode: bool = True) -> Iterator[Phase | torch.Tensor]:
        """Yields each phase as it ends, and last the result: pictures [results, 3, H, W] from -1 to 1, float32.

        Without `decode` the result is the packed latents, float32 [results, N, C]. Raises `DoesNotFit` before the first
        upload when the device has too little memory.
        """
        self.models.reserve(self.size(edit))
        clock = _Clock(self.device)
        pooled = self._encode_clip(edit)
        yield clock.phase("clip")
        contexts = self._encode_t5(edit)
        conditions = [Condition(*pair) for pair in zip(contexts, pooled, strict=True)]
        yield clock.phase("t5")
        references = self._encode_image(edit)
        yield clock.phase("vae encoder")
        self._modulate(edit, conditions)
        yield clock.phase("modulation")

        self.models.release("modulation")  # of no use to the steps
        latents = [upload(row[None, None], self.device, ttnn.float32) for row in edit.latents]
        transformer = self.models["transformer"]
        positions = transformer.positions(self._image_ids(edit), conditions[0].context.shape[2])
        yield clock.phase("transformer weights")
        steps = len(edit.sigmas) - 1
        for step in range(steps):
            self._denoise(edit, step, transformer, positions, conditions, references, latents)
            if edit.callback:
                self._call_back(edit, step, conditions, latents)
            yield clock.phase("step", step + 1, steps)
        del transformer, positions, conditions, references

        if decode:
            result = self._decode(edit, latents)
            yield clock.phase("vae decoder")
        else:
            result = torch.cat([ttnn.to_torch(x)[0] for x in latents])
        yield result

    def size(self, edit: Edit) -> EditSize:
        """What the edit's memory depends on."""
        text_tokens = edit.max_sequence_length
        if edit.text.embeds is not None:
            text_tokens = edit.text.embeds.shape[1]
        height, width = edit.size
        pixels = height * width
        if edit.image is not None and edit.image.shape[1] != self.models.vae_config.latent_channels:
            pixels = max(pixels, edit.image.shape[2] * edit.image.shape[3])
        return EditSize(text_tokens, len(self._image_ids(edit)), pixels)

    def _encode_clip(self, edit: Edit) -> "list[ttnn.Tensor]":
        """Pooled prompts [1, 1, 1, P], the negative ones after the others."""
        if edit.text.pooled is not None:
            rows = [row for text in edit.texts for row in text.pooled]
            return [upload(row[None, None, None], self.device, ttnn.bfloat16) for row in rows]
        prompts = [prompt for text in edit.texts for prompt in text.clip]
        ids = _token_ids(self.tokenizer, prompts, self.tokenizer.model_max_length)
        return [self.models["clip"](row) for row in ids]

    def _encode_t5(self, edit: Edit) -> "list[ttnn.Tensor]":
        """Contexts [1, 1, T, J], the negative ones after the others."""
        if edit.text.embeds is not None:
            rows = [row for text in edit.texts for row in text.embeds]
            return [upload(row[None, None], self.device, ttnn.bfloat16) for row in rows]
        prompts = [prompt for text in edit.texts for prompt in text.t5]
        ids = _token_ids(self.tokenizer_2, prompts, edit.max_sequence_length)
        return [self.models["t5"](row) for row in ids]

    def _encode_image(self, edit: Edit) -> "list[ttnn.Tensor]":
        """Packed reference latents [1, 1, R, C], one per picture."""
        if edit.image is None:
            return []
        if edit.image.shape[1] == self.models.vae_config.latent_channels:
            return [upload(row[None, None], self.device, ttnn.bfloat16) for row in pack_latents(edit.image)]
        return [self.models["vae encoder"](picture) for picture in edit.image]

    def _modulate(self, edit: Edit, conditions: list[Condition]) -> None:
        for condition in conditions:
            condition.table = self.models["modulation"](edit.sigmas[:-1], edit.guidance, condition.pooled)

    def _denoise(self, edit: Edit, step: int, transformer, positions, conditions, references, latents) -> None:
        """One Euler step of all results, in place in `latents`."""
        interval = edit.sigmas[step + 1] - edit.sigmas[step]
        prompts = len(edit.text)
        for p in range(prompts):
            pairs = [(condition.context, condition.table.step(step)) for condition in conditions[p::prompts]]
            for i in range(p * edit.images_per_prompt, (p + 1) * edit.images_per_prompt):
                noise = ttnn.typecast(latents[i], ttnn.bfloat16)
                reference = references[i % len(references)] if references else None
                velocity, *negative = [transformer(noise, reference, c, positions, rows) for c, rows in pairs]
                if negative:
                    towards = ttnn.multiply(ttnn.subtract(velocity, negative[0]), edit.true_cfg_scale)
                    velocity = ttnn.add(negative[0], towards)
                latents[i] = ttnn.add(latents[i], ttnn.multiply(velocity, interval))

    def _call_back(self, edit: Edit, step: int, conditions: list[Condition], latents: list) -> None:
        prompts = conditions[: len(edit.text)]
        tensors = {}
        if "latents" in edit.callback_tensors:
            tensors["latents"] = torch.cat([ttnn.to_torch(x)[0] for x in latents])
        if "prompt_embeds" in edit.callback_tensors:
            embeds = torch.cat([ttnn.to_torch(prompt.context)[0].float() for prompt in prompts])
            tensors["prompt_embeds"] = embeds.repeat_interleave(edit.images_per_prompt, dim=0)
        changed = edit.callback(step, torch.tensor(1000 * edit.sigmas[step]), tensors) or {}
        if "latents" in changed:
            latents[:] = [upload(row[None, None], self.device, ttnn.float32) for row in changed["latents"]]
        if "prompt_embeds" in changed:
            rows = changed["prompt_embeds"][:: edit.images_per_prompt]
            for prompt, row in zip(prompts, rows, strict=True):
                prompt.context = upload(row[None, None], self.device, ttnn.bfloat16)

    def _decode(self, edit: Edit, latents: list) -> torch.Tensor:
        return torch.stack([self.models["vae decoder"](x, *edit.size) for x in latents])

    def _image_ids(self, edit: Edit) -> torch.Tensor:
        """Position ids of the noise and the reference tokens."""
        vae = self.models.vae_config
        token = 2 * vae.scale_factor  # pixels along an edge
        height, width = edit.size
        ids = [image_ids(height // token, width // token, index=0)]
        if edit.image is not None:
            _, channels, height, width = edit.image.shape
            token = 2 if channels == vae.latent_channels else token
            ids.append(image_ids(height // token, width // token, index=1))
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
    for prompt, ids in zip(prompts, tokenizer(prompts).input_ids, strict=True):
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            logger.warning(f"The prompt '{prompt[:40]}...' is longer than {length} tokens. Cut off: '{lost}'")
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
