"""What an edit looked like on its way."""

from pathlib import Path
from typing import TYPE_CHECKING

from tt_flux_kontext.metadata import save

if TYPE_CHECKING:
    import torch

    from tt_flux_kontext import FluxKontextPipeline


class Previews:
    """Of one edit: what the model took the picture for, from the second step on; after the last there is the result.

    The guesses wait on the host as latents until the edit is done, since the decoder may have to change places with the
    transformer.

    Args:
        folder: for the pictures.
        every: that many steps.
    """

    def __init__(self, folder: Path, every: int):
        from tt_flux_kontext.extrapolation import Extrapolation

        self.folder, self.every = folder, every
        self._way = Extrapolation()
        self._guesses: dict[int, torch.Tensor] = {}

    def after_step(self, step: int, level: float, latents: "torch.Tensor") -> None:
        """`step`, from 0, began at a noise level and gave packed latents [1, N, C]."""
        guess = self._way.after_step(level, latents)  # of the latents before, after `step` steps
        if guess is not None and step % self.every == 0:
            self._guesses[step] = guess

    def save(self, pipe: "FluxKontextPipeline", size: tuple[int, int], name: str) -> None:
        """As `name`_step_002.png and so on. `size`: (width, height) of the result."""
        for step, latents in self._guesses.items():
            (picture,) = pipe.decode(latents, height=size[1], width=size[0])
            save(picture, self.folder / f"{name}_step_{step:03}.png")
