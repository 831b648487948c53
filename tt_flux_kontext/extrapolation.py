"""What an edit will become, guessed on its way."""

import torch


class Extrapolation:
    """Where the way of an edit's latents from noise to a picture ends if it goes straight on, which it nearly does.

    In other words, what the model takes the picture for, without the noise that is left.
    """

    def __init__(self):
        self._latents: torch.Tensor | None = None  # after the last step, whose level the next one tells
        self._before: tuple[float, torch.Tensor] | None = None  # level and latents a step earlier

    def after_step(self, level: float, latents: torch.Tensor) -> torch.Tensor | None:
        """A guess from the latents before this step; none in the first two, since it takes two known levels.

        Args:
            level: of noise, from 1 to 0, before this step.
            latents: of any shape, after it.
        """
        here, self._latents = self._latents, latents
        before, self._before = self._before, None if here is None else (level, here)
        if before is None:
            return None
        slope = (here - before[1]) / (level - before[0])
        return here - level * slope
