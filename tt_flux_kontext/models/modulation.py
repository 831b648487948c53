"""The modulation of all blocks: adaptive layer norm vectors of every step of an edit, computed before its first step.

They depend on time, guidance and pooled prompt alone. Their weights are a quarter of the transformer's, and need not be
on the device while it denoises.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.layers import Linear, upload
from tt_flux_kontext.models.weights import Weights

SINUSOIDS = 256
SCALE = 1000.0  # of times and guidance before their sinusoids: diffusers' FluxTransformer2DModel.forward


@dataclass(frozen=True)
class Adaptive:
    """Vectors of one adaptive layer norm, each [1, 1, 1, D].

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


class _Embedder:
    """Linear, SiLU, Linear (diffusers' TimestepEmbedding and PixArtAlphaTextProjection), in float32."""

    def __init__(self, weights: Weights, in_features: int, dim: int):
        self.linear_1 = Linear(weights, "linear_1", in_features=in_features, out_features=dim, activation="silu")
        self.linear_2 = Linear(weights, "linear_2", in_features=dim, out_features=dim)

    def __call__(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        return self.linear_2(self.linear_1(x, ttnn.float32), ttnn.float32)


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
            return Linear(weights, f"{name}.linear", in_features=dim, out_features=vectors * dim)

        self.double = [
            (linear(f"transformer_blocks.{i}.norm1", 6), linear(f"transformer_blocks.{i}.norm1_context", 6))
            for i in range(config.num_layers)
        ]
        self.single = [linear(f"single_transformer_blocks.{i}.norm", 3) for i in range(config.num_single_layers)]
        self.out = linear("norm_out", 2)
        self.device = weights.device

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
            double=[tuple(self._vectors(linear, temb, 6) for linear in streams) for streams in self.double],
            single=[self._vectors(linear, temb, 3) for linear in self.single],
            # The output norm's linear layer has scale and shift the other way round.
            out=self._vectors(self.out, temb, 2, scale_first=True),
        )

    def _upload(self, values: Sequence[float]) -> "ttnn.Tensor":
        scaled = [SCALE * value for value in values]
        return upload(sinusoids(scaled)[None, None], self.device, ttnn.float32)

    @staticmethod
    def _vectors(linear: Linear, temb: "ttnn.Tensor", count: int, *, scale_first: bool = False) -> "list[ttnn.Tensor]":
        """shift, scale[, gate[, shift, scale, gate]], each bfloat16 [1, 1, N, D], of a linear layer of `temb`."""
        rows, dim = temb.shape[2], temb.shape[3]
        table = linear(temb, ttnn.float32)
        vectors = [ttnn.slice(table, [0, 0, 0, i * dim], [1, 1, rows, (i + 1) * dim]) for i in range(count)]
        if scale_first:
            vectors = vectors[::-1]
        # 1 + scale is rounded once, here.
        return [
            ttnn.add(vector, 1.0, dtype=ttnn.bfloat16) if i % 3 == 1 else ttnn.typecast(vector, ttnn.bfloat16)
            for i, vector in enumerate(vectors)
        ]


@dataclass(frozen=True)
class ModulationTable:
    """What `Modulation` gives: vectors [1, 1, N, D] of all N steps, in the blocks' order; 2 MB a step for Flux."""

    double: "list[tuple[list[ttnn.Tensor], list[ttnn.Tensor]]]"
    single: "list[list[ttnn.Tensor]]"
    out: "list[ttnn.Tensor]"

    def step(self, index: int) -> StepModulation:
        """The vectors of one step, each [1, 1, 1, D]."""

        def rows(vectors: "list[ttnn.Tensor]") -> Adaptive:
            return Adaptive(*(ttnn.slice(v, [0, 0, index, 0], [1, 1, index + 1, v.shape[3]]) for v in vectors))

        def stream(vectors: "list[ttnn.Tensor]") -> StreamModulation:
            return StreamModulation(attention=rows(vectors[:3]), feed_forward=rows(vectors[3:]))

        return StepModulation(
            double=[(stream(image), stream(context)) for image, context in self.double],
            single=[rows(vectors) for vectors in self.single],
            out=rows(self.out),
        )
