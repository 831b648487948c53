"""One training loop for every stage of the recipe: seeded, averaged, saved atomically, resumable."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from loguru import logger
from torch.optim.swa_utils import AveragedModel


def fit(
    name: str,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Callable[[int], torch.Tensor],
    steps: int,
    file: Path,
    save_every: int = 200,
    decay: float = 0.999,
) -> torch.nn.Module:
    """Minimises `loss(step)` and returns the averaged model.

    The learning rates warm up over 5 % of the steps and fall linearly to zero over the last 40 %. `loss` must draw its
    randomness from the step alone, so that an interrupted run goes on as if nothing had happened.

    Args:
        name: of the stage, for the log.
        model: whose parameters the optimizers hold; changed in place.
        steps: in all, those of earlier calls with the same file included.
        file: the state, written every `save_every` steps and at the end; read first where it exists.
        decay: of the exponential moving average of the weights, once there are many.
    """
    average = AveragedModel(model, multi_avg_fn=_moving_average(decay))
    parts = [model, average, *optimizers]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    first = _restore(file, parts)
    started, recent = time.monotonic(), 0.0
    for step in range(first, steps):
        factor = min((step + 1) / (0.05 * steps), (steps - step) / (0.4 * steps), 1.0)
        for optimizer, rates in zip(optimizers, peaks):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = factor * rate
            optimizer.zero_grad()
        value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(model)
        recent = value.item() if step == first else 0.95 * recent + 0.05 * value.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            pace = (time.monotonic() - started) / (step + 1 - first)
            left = pace * (steps - step - 1) / 60
            logger.info(f"{name} {step + 1}/{steps} loss {recent:.4f} {pace:.2f} s/step, {left:.1f} min left")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save(file, {"step": step + 1, "parts": [part.state_dict() for part in parts]})
    return average.module.eval()


def save(file: Path, value: object) -> None:
    """torch.save that leaves either the old file or the whole new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    torch.save(value, temporary)
    os.replace(temporary, file)


def _moving_average(decay: float) -> Callable:
    """An exponential moving average that forgets its first weights sooner."""

    def update(averages: list[torch.Tensor], weights: list[torch.Tensor], count: torch.Tensor) -> None:
        young = (1 + count.item()) / (10 + count.item())
        torch._foreach_lerp_(averages, weights, 1 - min(decay, young))

    return update


def _restore(file: Path, parts: Sequence) -> int:
    """Loads a saved state into the parts; returns the step to go on with."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
    return state["step"]
