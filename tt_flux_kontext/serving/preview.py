"""What a picture on its way looks like: a guess at its end, without the VAE, which may have no room just then."""

import numpy as np
import torch
from PIL import Image

from tt_flux_kontext.extrapolation import Extrapolation
from tt_flux_kontext.resolution import unpack_latents


class Colours:
    """The colours nearest to latents by a linear rule, which a picture and its latents give by least squares.

    Args:
        picture: RGB.
        latents: [1, C, h, w], the VAE's of that picture.
    """

    def __init__(self, picture: Image.Image, latents: torch.Tensor):
        _, _, height, width = latents.shape
        small = torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.BOX)))
        colours = small.reshape(-1, 3) / 255
        self.scale_factor = picture.width // width
        self.rule = torch.linalg.lstsq(_columns(latents), colours).solution  # [C + 1, 3]

    def picture(self, tokens: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        """Of packed latents [1, N, 4 C]; `size`, (height, width), is that of the picture that they become."""
        height, width = size
        latents = unpack_latents(tokens, height, width, self.scale_factor, "latents")
        small = (_columns(latents) @ self.rule).reshape(*latents.shape[2:], 3)
        pixels = (small.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


class Course:
    """Guesses at where an edit ends: so many, spread evenly over its steps, but none after the first two."""

    def __init__(self, partial_images: int):
        self.partial_images = partial_images
        self._way = Extrapolation()

    def after_step(self, step: int, steps: int, level: float, latents: torch.Tensor) -> torch.Tensor | None:
        """What the first result's latents [1, N, C] would become, where that is to be shown.

        Args:
            step: from 0.
            level: of noise, from 1 to 0, before this step.
            latents: [B, N, C], after it.
        """
        guess = self._way.after_step(level, latents[:1].clone())
        return guess if step in self._shown(steps) else None

    def _shown(self, steps: int) -> set[int]:
        return {(number + 1) * steps // (self.partial_images + 1) for number in range(self.partial_images)}


def patches(edge: int) -> Image.Image:
    """A square picture of 8 x 8 soft spots in the strongest colours, edge x edge pixels."""
    spots = 255 * torch.randint(2, (8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(spots.numpy()).resize((edge, edge), Image.Resampling.BICUBIC)


def _columns(latents: torch.Tensor) -> torch.Tensor:
    """[1, C, h, w] -> [h w, C + 1]; the last column is 1."""
    columns = latents[0].flatten(1).T
    return torch.cat([columns, torch.ones(len(columns), 1)], dim=1)
