"""The rectified-flow schedule of an edit (arXiv:2209.03003), by diffusers' FlowMatchEulerDiscreteScheduler."""

from collections.abc import Sequence

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler


def sigma_schedule(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, image_tokens: int, sigmas: Sequence[float] | None = None
) -> list[float]:
    """Noise levels from 1 to 0, one more than steps; step i goes from the i-th to the next.

    Args:
        image_tokens: of the noise, not of the reference: more of them shift the levels towards noise.
        sigmas: levels before that shift, in place of the even ones; their count is then the number of steps.
    """
    config = scheduler.config
    if sigmas is None:
        sigmas = np.linspace(1.0, 1 / steps, steps)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (image_tokens - config.base_image_seq_len)
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    return scheduler.sigmas.tolist()
