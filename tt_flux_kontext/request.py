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
class Mask:
    """Where the first picture of an edit is painted anew.

    Attributes:
        rows: of packed latents, float32 [M, N, C]: 1 there, 0 elsewhere; result i has number i modulo M.
        seen: whether the model sees that picture as a reference too.
        mixed: whether the first noise level is of noise mixed with that picture, and not of noise alone.
    """

    rows: torch.Tensor
    seen: bool
    mixed: bool


@dataclass(frozen=True)
class Edit:
    """What is to be done.

    Attributes:
        text, negative: prompts; the negative ones, as many, for classifier-free guidance.
        size: (height, width) in pixels of the result.
        picture_sizes: of the pictures that there are, which are references; with a mask the first one is to be edited.
        sigmas: noise levels, one more than steps.
        guidance: distilled guidance scale, or None where the transformer embeds none.
        callback: (step, timestep 0 to 1000, tensors) -> tensors to replace, after each step.
        interrupted: asked before each step whether to leave out this one and all others.
        decode: whether pictures are wanted; else the packed latents are.
        step_cache: of as many steps; None for the blocks in each of them.
        lora_scale: of the weights of adapters that are not fused.
        reference_method: a name in `REFERENCE_METHODS`, of several references.
        mask: None to paint anew everywhere.
        latents: starting noise, float32 [results, N, C]; results of one prompt stand together.
        pictures: each [B, 3, H, W] from -1 to 1 or latents [B, C, h, w]; result i is made from number i modulo B.
    """

    text: Text
    negative: Text | None
    size: tuple[int, int]
    picture_sizes: Sequence[tuple[int, int]]
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
    reference_method: str = "offset"
    mask: Mask | None = None
    latents: torch.Tensor | None = None  # these two when all else is known to fit
    pictures: Sequence[torch.Tensor] = ()

    @property
    def texts(self) -> list[Text]:
        return [self.text, self.negative] if self.negative else [self.text]

    @property
    def references(self) -> slice:
        """Which of the pictures the model sees."""
        return slice(1 if self.mask and not self.mask.seen else 0, None)

    @property
    def results(self) -> int:
        return len(self.text) * self.images_per_prompt
