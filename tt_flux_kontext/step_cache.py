"""Denoising steps without the transformer's blocks (MagCache, arXiv:2506.09045).

What the blocks add to the image rows changes little from one step to the next, and by how much can be measured once for
a checkpoint: the mean ratio of its magnitudes. A step whose ratios since the last full one still multiply to nearly 1
adds what that one did. Which steps these are is known before an edit begins, so that the device is never asked.

The settings are diffusers' `MagCacheConfig`, and mean what they mean there.
"""

import diffusers
import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.denoising import Images

# Of FLUX.1 Kontext [dev] in 28 steps, measured by MagCache's authors (github.com/Zehong-Ma/MagCache, Kontext example).
# fmt: off
KONTEXT_MAG_RATIOS = (
    1.0, 1.19531, 1.07812, 1.02344, 1.03125, 1.00781, 1.02344, 1.01562, 1.01562, 1.0, 1.01562, 1.0, 1.00781, 1.0,
    1.00781, 1.0, 1.00781, 0.99609, 1.01562, 0.99219, 1.0, 0.99219, 0.98438, 0.99609, 0.96484, 0.96094, 0.9375, 0.93359,
)
# fmt: on


def full_steps(config: "diffusers.MagCacheConfig") -> list[bool]:
    """Of each step, whether the blocks run in it."""
    full, product, error, left_out = [], 1.0, 0.0, 0
    first = int(config.retention_ratio * config.num_inference_steps + 0.5)
    for step in range(config.num_inference_steps):
        if config.calibrate or step < first:
            full.append(True)
            continue
        product *= float(config.mag_ratios[step])
        error += abs(1 - product)
        left_out += 1
        full.append(step == 0 or error > config.threshold or left_out > config.max_skip_steps)
        if full[-1]:
            product, error, left_out = 1.0, 0.0, 0
    return full


class StepCache:
    """What the blocks added in the last full step of an edit.

    Args:
        config: for the steps of the edit.
        images: of the edit.
        conditions: of each result: one, and with classifier-free guidance two.
        width: of the transformer's stream.

    Attributes:
        full: of each step, whether the blocks run in it.
        added: of each result, by condition, a chip's rows and features, bfloat16 [1, 1, I, D].
        ratios: of each step so far, of the magnitudes of what the blocks added to those in the step before: means over
            tokens, results and conditions, and 1 for the first step. Only with `MagCacheConfig(calibrate=True)`.
    """

    def __init__(self, config: "diffusers.MagCacheConfig", images: Images, conditions: int, width: int):
        self.full = full_steps(config)
        self.calibrate = config.calibrate
        self.images = images
        parallel, (*_, rows, _) = images.parallel, images.rows[0].shape
        shape = [1, 1, rows, width // parallel.tp if parallel.fused else width]
        self.added = [
            [
                ttnn.empty(shape, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=parallel.device)
                for _ in range(conditions)
            ]
            for _ in images.rows
        ]
        self.ratios: list[float] = []
        self._magnitudes: torch.Tensor | None = None

    def after_step(self) -> None:
        """Takes the ratios, if that is asked for."""
        if not self.calibrate:
            return
        magnitudes = torch.stack([self._tokens(added).norm(dim=-1) for of_result in self.added for added in of_result])
        ratios = magnitudes / (self._magnitudes + 1e-8) if self.ratios else torch.ones(1)
        self.ratios.append(ratios.mean().item())
        self._magnitudes = magnitudes

    def _tokens(self, added: "ttnn.Tensor") -> torch.Tensor:
        """Of all chips, [tokens, D]."""
        parallel = self.images.parallel
        whole = parallel.all_gather(added, dim=3) if parallel.fused else added
        return parallel.gather(whole)[: self.images.all_tokens]
