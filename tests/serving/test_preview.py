"""Guesses at pictures on their way."""

import numpy as np
import pytest
import torch
from PIL import Image

from reference.pipeline import TINY_KONTEXT, load
from tt_flux_kontext.resolution import pack_latents
from tt_flux_kontext.serving.preview import Colours, Course, patches


def test_colours():
    """Of the trained weights' VAE: a picture that it never saw is there, blurred, in about its colours."""
    vae = load(TINY_KONTEXT).vae
    circle = Image.open(TINY_KONTEXT.parent / "pictures" / "circle.png").convert("RGB").resize((128, 128))

    def latents(picture: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0)[None] / 127.5 - 1
        with torch.no_grad():
            mode = vae.encode(pixels).latent_dist.mode()
        return (mode - vae.config.shift_factor) * vae.config.scaling_factor

    colours = Colours(patches(128), latents(patches(128)))
    guess = colours.picture(pack_latents(latents(circle)), (128, 128))
    assert guess.size == (128, 128)
    blurred = circle.resize((16, 16), Image.Resampling.BOX).resize((128, 128), Image.Resampling.BICUBIC)
    error = np.asarray(guess, np.float32) - np.asarray(blurred, np.float32)
    assert np.sqrt((error**2).mean()) < 0.12 * 255 < 2 * np.asarray(blurred).std()


@pytest.mark.parametrize("steps, wanted, shown", [(28, 3, [7, 14, 21]), (28, 1, [14]), (4, 3, [2, 3]), (2, 3, [])])
def test_course(steps, wanted, shown):
    """On a straight way from noise the guess is its end, of the first result, from the third step on."""
    generator = torch.Generator().manual_seed(0)
    noise, end = (torch.randn(2, 4, 8, generator=generator) for _ in range(2))
    levels = torch.linspace(1, 0, steps + 1).square().tolist()
    course, guessed = Course(wanted), []
    for step in range(steps):
        after = levels[step + 1] * noise + (1 - levels[step + 1]) * end
        guess = course.after_step(step, steps, levels[step], after)
        if guess is not None:
            guessed.append(step)
            assert torch.allclose(guess, end[:1], atol=1e-4)
    assert guessed == shown
