"""What an edit is asked to be, as the models need it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import diffusers
import torch


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
        size, image_size: (height, width) in pixels of the result, and of the pictures to edit if there are any.
        sigmas: noise levels, one more than steps.
        guidance: distilled guidance scale, or None where the transformer embeds none.
        callback: (step, timestep 0 to 1000, tensors) -> tensors to replace, after each step.
        interrupted: asked before each step whether to leave out this one and all others.
        decode: whether pictures are wanted; else the packed latents are.
        step_cache: of as many steps; None for the blocks in each of them.
        lora_scale: of the weights of adapters that are not fused.
        latents: starting noise, float32 [results, N, C]; results of one prompt stand together.
        image: pictures [B, 3, H, W] from -1 to 1 or latents [B, C, h, w]; result i is made from number i modulo B.
    """

    text: Text
    negative: Text | None
    size: tuple[int, int]
    image_size: tuple[int, int] | None
    sigmas: Sequence[float]
    guidance: float | None
    true_cfg_scale: float
    images_per_prompt: int
    max_sequence_length: int
    callback: Callable | None = None
    callback_tensors: Sequence[str] = ()
    interrupted: Callable[[], bool] = lambda: False
    decode: bool = True
    step_cache: "diffusers.MagCacheConfig | None" = None
    lora_scale: float = 1.0
    latents: torch.Tensor | None = None  # these two when all else is known to fit
    image: torch.Tensor | None = None

    @property
    def texts(self) -> list[Text]:
        return [self.text, self.negative] if self.negative else [self.text]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [self.size, self.image_size] if self.image_size else [self.size]

    @property
    def results(self) -> int:
        return len(self.text) * self.images_per_prompt
