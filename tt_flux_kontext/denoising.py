"""Denoising: an edit's images on the device, and their way from one noise level to the next."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.models.modulation import ModulationTable
from tt_flux_kontext.models.transformer import Positions, Transformer
from tt_flux_kontext.models.weights import upload, write
from tt_flux_kontext.request import Edit
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


class Kept:
    """What results keep outside a mask: a picture, mixed with their own noise to the level that they have.

    Args:
        mask: [M, N, C] of packed latents, 0 where the picture is kept, else 1; result i has number i modulo M.
        pictures, noise: [results, N, C].
        below: rows of references.
    """

    def __init__(self, mask: torch.Tensor, pictures: torch.Tensor, noise: torch.Tensor, below: int, parallel: Parallel):
        self._level = upload(torch.zeros(1, 1, 1, 1), parallel.device, ttnn.float32)

        def scatter(rows: torch.Tensor, value: float) -> "ttnn.Tensor":
            return parallel.scatter(torch.nn.functional.pad(rows, (0, 0, 0, below), value=value), ttnn.float32)

        masks = [scatter(rows, 1) for rows in mask]
        self._masks, self._pictures, self._noise = [], [], []
        for i, (picture, x) in enumerate(zip(pictures, noise, strict=True)):
            outside = 1 - mask[i % len(mask)]
            self._masks.append(masks[i % len(masks)])
            self._pictures.append(scatter(outside * picture, 0))
            self._noise.append(scatter(outside * (x - picture), 0))

    def at_level(self, level: float) -> None:
        """Of the noise in what is kept from now on."""
        write(torch.full((1, 1, 1, 1), level), self._level)

    def put_back(self, i: int, rows: "ttnn.Tensor", scratch: "ttnn.Tensor") -> None:
        """Into the rows of result i. `scratch` is of their shape and format."""
        ttnn.multiply(self._noise[i], self._level, output_tensor=scratch)
        ttnn.add(scratch, self._pictures[i], output_tensor=scratch)
        ttnn.multiply(rows, self._masks[i], output_tensor=rows)
        ttnn.add(rows, scratch, output_tensor=rows)


class Images:
    """The image rows of all results on the device, float32: noise, references and padding together; the noise moves.

    Args:
        noise: [results, N, C].
        references: of each the pictures [R, C], of result i number i modulo their number; may be none.
        kept: of a masked edit.

    Attributes:
        tokens, all_tokens: of the noise, and of noise and references together.
        moving: a column of 1 for the noise, 0 for other rows.
        at_work: the result that the transformer gets, in bfloat16.
        move: what will be added to it.
    """

    def __init__(
        self,
        noise: torch.Tensor,
        references: Sequence[Sequence[torch.Tensor]],
        parallel: Parallel,
        kept: Kept | None = None,
    ):
        self.parallel = parallel
        self.references = references
        self.kept = kept
        self.tokens = noise.shape[1]
        self.rows = [parallel.scatter(x, ttnn.float32) for x in self._with_references(noise)]
        moving = torch.ones(self.tokens, 1)
        below = sum(len(pictures[0]) for pictures in references)
        self.all_tokens = self.tokens + below
        self.moving = parallel.scatter(torch.nn.functional.pad(moving, (0, 0, 0, below)), ttnn.float32)
        self.at_work, self.move = (
            ttnn.empty(list(self.rows[0].shape), dtype=dtype, layout=ttnn.TILE_LAYOUT, device=parallel.device)
            for dtype in (ttnn.bfloat16, ttnn.float32)
        )

    def replace(self, noise: torch.Tensor) -> None:
        for x, rows in zip(self._with_references(noise), self.rows, strict=True):
            self.parallel.write(x, rows)

    def _with_references(self, noise: torch.Tensor) -> list[torch.Tensor]:
        return [
            torch.cat([x, *(pictures[i % len(pictures)] for pictures in self.references)]) for i, x in enumerate(noise)
        ]

    def begin(self, i: int) -> None:
        """Takes a result to work."""
        ttnn.typecast(self.rows[i], ttnn.bfloat16, output_tensor=self.at_work)

    def end(self, i: int) -> None:
        """Adds its move, and puts back what it keeps."""
        ttnn.add(self.rows[i], self.move, output_tensor=self.rows[i])
        if self.kept:
            self.kept.put_back(i, self.rows[i], self.move)

    def noise(self) -> torch.Tensor:
        """float32 [results, N, C]."""
        return torch.stack([self.parallel.gather(rows)[: self.tokens] for rows in self.rows])


def images_of(edit: Edit, pictures: list[list[torch.Tensor]], parallel: Parallel) -> Images:
    """An edit's on the device. `pictures`: of each of the edit's, packed latents [N, C] by batch."""
    references = pictures[edit.references]
    if not edit.mask:
        return Images(edit.latents, references, parallel)
    noise = edit.latents
    picture = torch.stack([pictures[0][i % len(pictures[0])] for i in range(edit.results)])
    below = sum(len(reference[0]) for reference in references)
    kept = Kept(edit.mask.rows, picture, noise, below, parallel)
    level = edit.sigmas[0] if edit.mask.mixed else 1.0
    return Images(level * noise + (1 - level) * picture, references, parallel, kept)


class Denoiser:
    """Euler steps of images, one result after the other.

    What the transformer does for a result of a prompt repeats as a trace. So whatever changes from step to step is
    written to tensors that are there before: the image, its context, the length of the step and which row of a table
    of modulation is its. `close` frees the traces.

    Args:
        prompts: of each its condition, with classifier-free guidance also the negative one; both are on the device.
        images: of as many results for each prompt, which stand together.
        steps: that are to come.
        added: with a step cache, of each result what the blocks add, by condition.
    """

    def __init__(
        self,
        transformer: Transformer,
        prompts: Sequence[Sequence[Condition]],
        images: Images,
        true_cfg_scale: float,
        steps: int,
        added: "Sequence[Sequence[ttnn.Tensor]]" = (),
    ):
        self.transformer, self.prompts, self.images = transformer, prompts, images
        self.true_cfg_scale, self.added = true_cfg_scale, added
        self.each = len(images.rows) // len(prompts)
        mesh = images.parallel.mesh
        self.interval = upload(torch.zeros(1, 1, 1, 1), mesh.device, ttnn.float32)
        # Results of a prompt share a trace, but not where each keeps something of its own.
        self.predictions = []
        for i in range(len(images.rows)):
            if i % self.each == 0 or added:
                traced = Traced(partial(self._predict, i), mesh, steps if added else steps * self.each)
            self.predictions.append(traced)
        if added:  # now, so that no program is put later where a trace keeps what it makes
            self._predict_without_blocks(0)

    def step(self, index: int, level: float, next_level: float, full: bool = True) -> None:
        """From a noise level to the next.

        `index`: of the step in the tables; `full`: whether the transformer's blocks run.
        """
        write(torch.full((1, 1, 1, 1), next_level - level), self.interval)
        if self.images.kept:
            self.images.kept.at_level(next_level)
        for condition in chain(*self.prompts):
            condition.table.choose(index)
        for i, predict in enumerate(self.predictions):
            self.images.begin(i)
            predict() if full else self._predict_without_blocks(i)
            self.images.end(i)

    def close(self) -> None:
        for prediction in set(self.predictions):
            prediction.release()
        self.predictions.clear()  # which hold this object, and all that it has on the device

    def _predict(self, i: int) -> None:
        """How the image at work moves, which is result i or, without `added`, any of its prompt."""
        conditions = self.prompts[i // self.each]
        image, added = self.images.at_work, self.added[i] if self.added else [None] * len(conditions)
        self._move(
            self.transformer(image, condition.placed, condition.positions, condition.table.step(), adds)
            for condition, adds in zip(conditions, added, strict=True)
        )

    def _predict_without_blocks(self, i: int) -> None:
        self._move(
            self.transformer.without_blocks(self.images.at_work, adds, condition.table.step_out())
            for condition, adds in zip(self.prompts[i // self.each], self.added[i], strict=True)
        )

    def _move(self, velocities: "Iterable[ttnn.Tensor]") -> None:
        velocity, *negative = velocities
        if negative:
            towards = ttnn.multiply(ttnn.subtract(velocity, negative[0]), self.true_cfg_scale)
            velocity = ttnn.add(negative[0], towards)
        ttnn.multiply(velocity, ttnn.multiply(self.images.moving, self.interval), output_tensor=self.images.move)
