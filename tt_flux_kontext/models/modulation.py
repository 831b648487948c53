"""The modulation of all blocks: adaptive layer norm vectors of every step of an edit, computed before its first step.

They depend on time, guidance and pooled prompt alone. Their weights are a quarter of the transformer's, and need not be
on the device while it denoises.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.layers import Linear
from tt_flux_kontext.models.weights import Weights, upload, write

SINUSOIDS = 256
_ADAPTIVE = ("shift", "scale", "gate")  # what the linear layer of a single block gives, in its order
_STREAM = 2 * _ADAPTIVE  # of a double block's stream
_OUT = ("scale", "shift")  # of the output norm, the other way round
SCALE = 1000.0  # of times and guidance before their sinusoids: diffusers' FluxTransformer2DModel.forward


@dataclass(frozen=True)
class Adaptive:
    """Vectors of one adaptive layer norm, each [1, 1, 1, D]; of a residual stream that is split, a chip's features.

    `scale` is 1 + the model's scale, as the norm multiplies by it. `gate` multiplies what follows the norm; the last
    norm has none.
    """

    shift: "ttnn.Tensor"
    scale: "ttnn.Tensor"
    gate: "ttnn.Tensor | None" = None


@dataclass(frozen=True)
class StreamModulation:
    """One stream of a double block: before its attention, and before its feed-forward."""

    attention: Adaptive
    feed_forward: Adaptive


@dataclass(frozen=True)
class StepModulation:
    """All of one denoising step: image and context stream of each double block, each single block, the output norm."""

    double: list[tuple[StreamModulation, StreamModulation]]
    single: list[Adaptive]
    out: Adaptive


def sinusoids(values: Sequence[float]) -> torch.Tensor:
    """cos | sin of 128 frequencies from 1 to 1/10000, float32 [N, 256] (diffusers' get_timestep_embedding, flipped).

    In bfloat16 the phases at t = 1000 would be off by up to two radians.
    """
    half = SINUSOIDS // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
    phases = torch.tensor(values, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


class _FewRows(Linear):
    """A linear layer of a few rows. `Linear`'s op would give a row of tiles to one row of cores; this one takes all."""

    def __call__(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        """Returns float32."""
        return ttnn.linear(
            x,
            self.weight,
            bias=self.bias,
            activation=self.activation,
            dtype=ttnn.float32,
            compute_kernel_config=self.compute_config,
        )


class _Embedder:
    """Linear, SiLU, Linear (diffusers' TimestepEmbedding and PixArtAlphaTextProjection), in float32."""

    def __init__(self, weights: Weights, in_features: int, dim: int):
        self.linear_1 = _FewRows(weights, "linear_1", in_features=in_features, out_features=dim, activation="SILU")
        self.linear_2 = _FewRows(weights, "linear_2", in_features=dim, out_features=dim)

    def __call__(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        return self.linear_2(self.linear_1(x))


class Modulation:
    """`time_text_embed` and every `norm*.linear` of diffusers' FluxTransformer2DModel."""

    def __init__(self, config, weights: Weights):
        dim = config.inner_dim
        embed = weights.at("time_text_embed")
        self.timestep_embedder = _Embedder(embed.at("timestep_embedder"), SINUSOIDS, dim)
        self.guidance_embedder = None
        if config.guidance_embeds:
            self.guidance_embedder = _Embedder(embed.at("guidance_embedder"), SINUSOIDS, dim)
        self.text_embedder = _Embedder(embed.at("text_embedder"), config.pooled_projection_dim, dim)

        def linear(name: str, vectors: int) -> Linear:
            # Of a stream that is split, each chip makes its own features of each vector.
            pieces = vectors if weights.parallel.fused else 1
            name = f"{name}.linear"
            return _FewRows(weights, name, in_features=dim, out_features=vectors * dim, split="columns", pieces=pieces)

        self.double = [
            (linear(f"transformer_blocks.{i}.norm1", 6), linear(f"transformer_blocks.{i}.norm1_context", 6))
            for i in range(config.num_layers)
        ]
        self.single = [linear(f"single_transformer_blocks.{i}.norm", 3) for i in range(config.num_single_layers)]
        self.out = linear("norm_out", 2)
        self.parallel = weights.parallel
        self.device = weights.device
        self.norm_config = weights.norm_config

    @staticmethod
    def divides(config, chips: int) -> bool:
        """Whether its linear layers can be split over so many chips."""
        return config.inner_dim % (ttnn.TILE_SIZE * chips) == 0

    def embed(self, sigmas: Sequence[float], guidance: float | None, pooled: "ttnn.Tensor") -> "ttnn.Tensor":
        """temb, float32 [1, 1, N, D], for N times `sigmas` (0 to 1), with the pooled prompt [1, 1, 1, P].

        Raises `ValueError` when guidance is given to a model that embeds none, or the other way round.
        """
        if (guidance is None) != (self.guidance_embedder is None):
            wanted = "no guidance" if self.guidance_embedder is None else "a guidance scale"
            raise ValueError(f"This transformer takes {wanted}, not {guidance}.")
        temb = ttnn.add(self.timestep_embedder(self._upload(sigmas)), self.text_embedder(pooled))
        if guidance is not None:
            temb = ttnn.add(temb, self.guidance_embedder(self._upload([guidance])))
        return temb

    def __call__(self, sigmas: Sequence[float], guidance: float | None, pooled: "ttnn.Tensor") -> "ModulationTable":
        """The table of N steps; arguments as of `embed`."""
        temb = ttnn.silu(self.embed(sigmas, guidance, pooled))
        return ModulationTable(
            double=[tuple(self._vectors(linear, temb, _STREAM) for linear in streams) for streams in self.double],
            single=[self._vectors(linear, temb, _ADAPTIVE) for linear in self.single],
            out=self._vectors(self.out, temb, _OUT),
            chosen=upload(_unit(0, len(sigmas)), self.device, ttnn.bfloat16),
            config=self.norm_config,
        )

    def _upload(self, values: Sequence[float]) -> "ttnn.Tensor":
        scaled = [SCALE * value for value in values]
        return upload(sinusoids(scaled)[None, None], self.device, ttnn.float32)

    def _vectors(self, linear: Linear, temb: "ttnn.Tensor", names: tuple[str, ...]) -> "ttnn.Tensor":
        """What a linear layer makes of `temb`: vectors side by side, bfloat16 [1, 1, N, len(names) D]."""
        made = linear(temb)
        if not self.parallel.fused:
            made = self.parallel.all_gather(made, dim=3)
        one = torch.tensor([float(name == "scale") for name in names]).repeat_interleave(made.shape[3] // len(names))
        # 1 + scale is rounded once, here.
        return ttnn.add(made, upload(one[None, None, None], self.device, ttnn.float32), dtype=ttnn.bfloat16)


@dataclass(frozen=True)
class ModulationTable:
    """Of each linear layer of `Modulation` its vectors, [1, 1, N, vectors D], a row a step; 2 MB a row for Flux.

    Of a residual stream that is split, a chip's features of each vector. `chosen` is a unit vector [1, 1, 1, N].
    """

    double: "list[tuple[ttnn.Tensor, ttnn.Tensor]]"
    single: "list[ttnn.Tensor]"
    out: "ttnn.Tensor"
    chosen: "ttnn.Tensor"
    config: object

    def moved(self, move: Callable) -> "ModulationTable":
        """The same one, each of whose tensors `move` brought elsewhere."""
        double = [tuple(map(move, streams)) for streams in self.double]
        single = list(map(move, self.single))
        return replace(self, double=double, single=single, out=move(self.out), chosen=move(self.chosen))

    def choose(self, index: int) -> None:
        """Which step `step` is of; the first one until then."""
        write(_unit(index, self.chosen.shape[3]), self.chosen)

    def step(self) -> StepModulation:
        """The vectors of the step that was chosen, each [1, 1, 1, D]."""
        return StepModulation(
            double=[(self._stream(image), self._stream(context)) for image, context in self.double],
            single=[Adaptive(*self._row(table, _ADAPTIVE)) for table in self.single],
            out=self.step_out(),
        )

    def step_out(self) -> Adaptive:
        """Of them those of the output norm alone."""
        scale, shift = self._row(self.out, _OUT)
        return Adaptive(shift=shift, scale=scale)

    def _stream(self, table: "ttnn.Tensor") -> StreamModulation:
        parts = self._row(table, _STREAM)
        return StreamModulation(attention=Adaptive(*parts[:3]), feed_forward=Adaptive(*parts[3:]))

    def _row(self, table: "ttnn.Tensor", names: tuple[str, ...]) -> "list[ttnn.Tensor]":
        # A row that begins no tile is cut out by a product with a unit vector: exact, and all its vectors in one op,
        # which is the same for each step.
        return ttnn.experimental.minimal_matmul_split(
            self.chosen, table, chunks=len(names), dim=-1, compute_kernel_config=self.config
        )


def _unit(index: int, size: int) -> torch.Tensor:
    """Unit vector [1, 1, 1, size]."""
    return torch.eye(size)[None, None, index : index + 1]
