"""Denoising: an edit's images on the device, and their way from one noise level to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.models.modulation import ModulationTable
from tt_flux_kontext.models.transformer import Positions, Transformer
from tt_flux_kontext.models.weights import upload, write
from tt_flux_kontext.trace import Traced


@dataclass
class Condition:
    """What a prompt becomes: context [T, J] and pooled [1, P].

    On the device: `placed`, the context as the transformer has it, `positions` of its tokens and the images', and
    `table`, the modulation of some steps.
    """

    context: torch.Tensor
    pooled: torch.Tensor
    placed: "ttnn.Tensor | None" = None
    positions: Positions | None = None
    table: ModulationTable | None = None


class Images:
    """The image rows of all results on the device, float32: noise, reference and padding together; the noise moves.

    Args:
        noise: [results, N, C].
        references: [R, C] each, of result i number i modulo their number; may be none.

    Attributes:
        moving: a column of 1 for the noise, 0 for other rows.
        at_work: the result that the transformer gets, in bfloat16.
        move: what will be added to it.
    """

    def __init__(self, noise: torch.Tensor, references: list[torch.Tensor], parallel: Parallel):
        self.parallel = parallel
        self.references = references
        self.tokens = noise.shape[1]
        self.rows = [parallel.scatter(x, ttnn.float32) for x in self._with_references(noise)]
        moving = torch.ones(self.tokens, 1)
        below = len(references[0]) if references else 0
        self.moving = parallel.scatter(torch.nn.functional.pad(moving, (0, 0, 0, below)), ttnn.float32)
        self.at_work, self.move = (
            ttnn.empty(list(self.rows[0].shape), dtype=dtype, layout=ttnn.TILE_LAYOUT, device=parallel.device)
            for dtype in (ttnn.bfloat16, ttnn.float32)
        )

    def replace(self, noise: torch.Tensor) -> None:
        for x, rows in zip(self._with_references(noise), self.rows, strict=True):
            self.parallel.write(x, rows)

    def _with_references(self, noise: torch.Tensor) -> list[torch.Tensor]:
        if not self.references:
            return list(noise)
        return [torch.cat([x, self.references[i % len(self.references)]]) for i, x in enumerate(noise)]

    def begin(self, i: int) -> None:
        """Takes a result to work."""
        ttnn.typecast(self.rows[i], ttnn.bfloat16, output_tensor=self.at_work)

    def end(self, i: int) -> None:
        """Adds its move."""
        ttnn.add(self.rows[i], self.move, output_tensor=self.rows[i])

    def noise(self) -> torch.Tensor:
        """float32 [results, N, C]."""
        return torch.stack([self.parallel.gather(rows)[: self.tokens] for rows in self.rows])


class Denoiser:
    """Euler steps of images, one result after the other.

    What the transformer does for a result of a prompt repeats as a trace. So whatever changes from step to step is
    written to tensors that are there before: the image, its context, the length of the step and which row of a table
    of modulation is its. `close` frees the traces.

    Args:
        prompts: of each its condition, with classifier-free guidance also the negative one; both are on the device.
        images: of as many results for each prompt, which stand together.
        steps: that are to come.
    """

    def __init__(
        self,
        transformer: Transformer,
        prompts: Sequence[Sequence[Condition]],
        images: Images,
        true_cfg_scale: float,
        steps: int,
    ):
        self.prompts, self.images = prompts, images
        self.each = len(images.rows) // len(prompts)
        mesh = images.parallel.mesh
        self.interval = upload(torch.zeros(1, 1, 1, 1), mesh.device, ttnn.float32)
        self.predictions = [
            Traced(
                partial(_predict, transformer, conditions, images, self.interval, true_cfg_scale),
                mesh,
                steps * self.each,
            )
            for conditions in prompts
        ]

    def step(self, index: int, interval: float) -> None:
        """To a noise level `interval` higher, which is negative; `index`: of the step in the tables."""
        write(torch.full((1, 1, 1, 1), interval), self.interval)
        for p, (conditions, predict) in enumerate(zip(self.prompts, self.predictions, strict=True)):
            for condition in conditions:
                condition.table.choose(index)
            for i in range(p * self.each, (p + 1) * self.each):
                self.images.begin(i)
                predict()
                self.images.end(i)

    def close(self) -> None:
        for prediction in self.predictions:
            prediction.release()


def _predict(
    transformer: Transformer,
    conditions: Sequence[Condition],
    images: Images,
    interval: "ttnn.Tensor",
    true_cfg_scale: float,
) -> None:
    """How the image at work moves."""
    velocity, *negative = [
        transformer(images.at_work, condition.placed, condition.positions, condition.table.step())
        for condition in conditions
    ]
    if negative:
        towards = ttnn.multiply(ttnn.subtract(velocity, negative[0]), true_cfg_scale)
        velocity = ttnn.add(negative[0], towards)
    ttnn.multiply(velocity, ttnn.multiply(images.moving, interval), output_tensor=images.move)
