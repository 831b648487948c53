"""The rectified-flow schedule of an edit (arXiv:2209.03003), by diffusers' FlowMatchEulerDiscreteScheduler."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from tt_flux_kontext.checkpoint.files import CheckpointError, check_fields, read_json

_FIELDS = {
    "_class_name": str,
    "num_train_timesteps": int,
    "shift": float,
    "use_dynamic_shifting": bool,
    "base_shift": float,
    "max_shift": float,
    "base_image_seq_len": int,
    "max_image_seq_len": int,
    "invert_sigmas": bool,
    "shift_terminal": float | None,
    "use_karras_sigmas": bool,
    "use_exponential_sigmas": bool,
    "use_beta_sigmas": bool,
    "time_shift_type": str,
    "stochastic_sampling": bool,
}
# What an edit does not do as that scheduler would; all else of the schedule is the scheduler's own work.
_ONLY = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "stochastic_sampling": False,
    "use_flow_sigmas": False,
}


def load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a checkpoint.

    Raises `CheckpointError` when its config is missing, is of another class, has a field of another type, or asks for
    what is not done here.
    """
    path = folder / "scheduler_config.json"
    config = read_json(path)
    check_fields(path, config, _FIELDS)
    for name, value in _ONLY.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"{path}: {name} is {config[name]}; only {value} is run here.")
    try:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        sigma_schedule(scheduler, steps=28, image_tokens=4096)
    except (ValueError, TypeError, ArithmeticError, ImportError) as error:
        raise CheckpointError(f"{path} gives no schedule: {error}") from error
    return scheduler


def sigma_schedule(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, image_tokens: int, sigmas: Sequence[float] | None = None
) -> list[float]:
    """Noise levels from 1 to 0, one more than steps; step i goes from the i-th to the next.

    Args:
        image_tokens: of the noise, not of the reference: more of them shift the levels towards noise.
        sigmas: levels before that shift, in place of the even ones; their count is then the number of steps.

    Raises `ValueError` when the scheduler's config gives no such levels.
    """
    config = scheduler.config
    if sigmas is None:
        sigmas = np.linspace(1.0, 1 / steps, steps)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (image_tokens - config.base_image_seq_len)
    if mu <= 0 and config.use_dynamic_shifting and config.time_shift_type == "linear":
        raise ValueError(
            f"The scheduler's base_shift and max_shift give negative noise levels for {image_tokens} tokens."
        )
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    levels = scheduler.sigmas.tolist()
    if not all(map(math.isfinite, levels)):
        raise ValueError(f"The scheduler's config gives noise levels that are no numbers for {len(levels) - 1} steps.")
    return levels


def first_step(steps: int, strength: float) -> int:
    """The one that an edit begins with which keeps something of its picture, as in diffusers: 0 at strength 1.

    Raises `ValueError` where none would be left.
    """
    first = int(max(steps - min(steps * strength, steps), 0))
    if first == steps:
        raise ValueError(f"`strength` {strength} leaves none of {steps} steps: the picture would stay as it is.")
    return first
