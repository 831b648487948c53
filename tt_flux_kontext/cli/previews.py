"""What an edit looked like on its way."""

from pathlib import Path
from typing import TYPE_CHECKING

from tt_flux_kontext.metadata import save

if TYPE_CHECKING:
    import torch

    from tt_flux_kontext import FluxKontextPipeline


class Previews:
    """Of one edit: where its way would end if it went on as straight as in the step before.

    That is what the model takes the picture for, without the noise that is left in the latents. The first step has none
    before it, and after the last one there is the result. Latents wait on the host until the edit is done, since the
    decoder may have to change places with the transformer.

    Args:
        folder: for the pictures.
        every: that many steps.
    """

    def __init__(self, folder: Path, every: int):
        self.folder, self.every = folder, every
        self._latents: torch.Tensor | None = None  # after the last step
        self._before: tuple[float, torch.Tensor] | None = None  # noise level and latents after the one before
        self._ends: dict[int, torch.Tensor] = {}

    def after_step(self, step: int, level: float, latents: "torch.Tensor") -> None:
        """`step`, from 0, began at a noise level, that of the latents before, and gave packed ones [1, N, C]."""
        if self._latents is not None:
            if self._before and step % self.every == 0:
                level_before, latents_before = self._before
                velocity = (self._latents - latents_before) / (level - level_before)
                self._ends[step] = self._latents - level * velocity
            self._before = level, self._latents
        self._latents = latents

    def save(self, pipe: "FluxKontextPipeline", size: tuple[int, int], name: str) -> None:
        """As `name`_step_002.png and so on. `size`: (width, height) of the result."""
        for step, latents in self._ends.items():
            (picture,) = pipe.decode(latents, height=size[1], width=size[0])
            save(picture, self.folder / f"{name}_step_{step:03}.png")
