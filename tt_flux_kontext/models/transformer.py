"""The Flux diffusion transformer (diffusers' FluxTransformer2DModel) without its modulation (`modulation.py`)."""

from dataclasses import dataclass
from typing import get_type_hints

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.checkpoint.files import LAYERS, check_fields
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.models.attention import Attention, Lengths, QueryKeyValue
from tt_flux_kontext.models.layers import HeadNorm, Linear, Projections, merge_heads, padded_heads, to_heads
from tt_flux_kontext.models.modulation import Adaptive, StepModulation, StreamModulation
from tt_flux_kontext.models.rope import Rope
from tt_flux_kontext.models.weights import Weights

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Fields of the checkpoint's transformer/config.json, with diffusers' names and defaults."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    @classmethod
    def from_dict(cls, config: dict) -> "TransformerConfig":
        """Raises `CheckpointError` for a value that Flux on TT-NN can't have."""
        kinds = get_type_hints(cls) | {"num_layers": LAYERS, "num_single_layers": LAYERS}
        check_fields("transformer/config.json", config, kinds | {"patch_size": int, "out_channels": int | None})
        fields = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        fields["axes_dims_rope"] = tuple(fields.get("axes_dims_rope", cls.axes_dims_rope))
        result = cls(**fields)
        if len(result.axes_dims_rope) != 3 or any(size % 2 for size in result.axes_dims_rope):
            raise CheckpointError(
                f"transformer/config.json: axes_dims_rope {list(result.axes_dims_rope)} must be three even numbers, of "
                "the index of the picture, the row and the column."
            )
        if config.get("patch_size", 1) != 1 or config.get("out_channels") not in (None, result.in_channels):
            raise CheckpointError("transformer/config.json: patch_size must be 1 and out_channels equal in_channels.")
        if sum(result.axes_dims_rope) != result.attention_head_dim or result.attention_head_dim % 32:
            raise CheckpointError(
                f"transformer/config.json: attention_head_dim ({result.attention_head_dim}) must be the sum of "
                f"axes_dims_rope ({sum(result.axes_dims_rope)}), and a multiple of 32 to split heads by tiles."
            )
        return result

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class _Adaptable:
    """The norm before linear layers, adapted by shift and 1 + scale."""

    def __init__(self, weights: Weights):
        self.parallel = weights.parallel
        self.norm_config = weights.norm_config

    def norm(self, x: "ttnn.Tensor", modulation: Adaptive) -> "ttnn.Tensor":
        norm, more = ttnn.layer_norm, {}
        if self.parallel.fused:
            norm, more = ttnn.experimental.dit_fused_distributed_layernorm, self.parallel.norm(x)
        return norm(
            x,
            weight=modulation.scale,
            bias=modulation.shift,
            epsilon=EPS,
            compute_kernel_config=self.norm_config,
            **more,
        )


class _Heads(_Adaptable):
    """What blocks share: the adapted norm, and from it query, key and value of each head.

    Attributes:
        heads: of a chip, those of zeros included that their norm needs.
        padding: features of the heads of zeros, over all chips.
    """

    def __init__(self, config: TransformerConfig, weights: Weights, names: dict[str, str]):
        super().__init__(weights)
        dim, size, tp = config.inner_dim, config.attention_head_dim, weights.parallel.tp
        heads = padded_heads(config.num_attention_heads, size, tp)
        self.heads, self.padding = heads // tp, heads * size - dim
        qkv = (names["q"], names["k"], names["v"])
        self.qkv = Projections(weights, *qkv, in_features=dim, out_features=dim, out_zeros=self.padding)
        self.norm_q = HeadNorm(weights, names["norm_q"], self.heads, size, EPS)
        self.norm_k = HeadNorm(weights, names["norm_k"], self.heads, size, EPS)

    def query_key_value(self, normed: "ttnn.Tensor", rope: Rope | None, dtype: "ttnn.DataType") -> QueryKeyValue:
        query, key, value = self.qkv(normed)
        if value.dtype != dtype:
            value = ttnn.typecast(value, dtype)
        return self.norm_q(query, rope, dtype), self.norm_k(key, rope, dtype), to_heads(value, self.heads)


class _Stream(_Heads):
    """The image or the context stream of a double block: all but the attention, in which both meet."""

    def __init__(self, config: TransformerConfig, weights: Weights, names: dict[str, str]):
        super().__init__(config, weights, names)
        dim, feed_forward = config.inner_dim, names["feed_forward"]
        self.out = Linear(weights, names["out"], in_features=dim, out_features=dim, in_zeros=self.padding, split="rows")
        self.feed_forward_in = Linear(
            weights,
            f"{feed_forward}.net.0.proj",
            in_features=dim,
            out_features=4 * dim,
            activation="GELU_TANH",
            split="columns",
        )
        self.feed_forward_out = Linear(
            weights, f"{feed_forward}.net.2", in_features=4 * dim, out_features=dim, split="rows"
        )

    def attend(
        self, x: "ttnn.Tensor", rope: Rope | None, modulation: StreamModulation, dtype: "ttnn.DataType"
    ) -> QueryKeyValue:
        return self.query_key_value(self.norm(x, modulation.attention), rope, dtype)

    def finish(self, x: "ttnn.Tensor", attention: "ttnn.Tensor", modulation: StreamModulation) -> "ttnn.Tensor":
        x = self.out.add_to(x, modulation.attention.gate, merge_heads(attention))
        hidden = self.feed_forward_in(self.norm(x, modulation.feed_forward))
        return self.feed_forward_out.add_to(x, modulation.feed_forward.gate, hidden)


_IMAGE_NAMES = {
    "q": "attn.to_q",
    "k": "attn.to_k",
    "v": "attn.to_v",
    "norm_q": "attn.norm_q",
    "norm_k": "attn.norm_k",
    "out": "attn.to_out.0",
    "feed_forward": "ff",
}
_CONTEXT_NAMES = {
    "q": "attn.add_q_proj",
    "k": "attn.add_k_proj",
    "v": "attn.add_v_proj",
    "norm_q": "attn.norm_added_q",
    "norm_k": "attn.norm_added_k",
    "out": "attn.to_add_out",
    "feed_forward": "ff_context",
}


class DoubleBlock:
    """Joint attention over image and context, each with weights of its own (diffusers' FluxTransformerBlock)."""

    def __init__(self, config: TransformerConfig, weights: Weights):
        self.image = _Stream(config, weights, _IMAGE_NAMES)
        self.context = _Stream(config, weights, _CONTEXT_NAMES)
        self.attention = Attention(weights)

    def __call__(
        self,
        image: "ttnn.Tensor",
        context: "ttnn.Tensor",
        positions: "Positions",
        modulation: tuple[StreamModulation, StreamModulation],
    ) -> "tuple[ttnn.Tensor, ttnn.Tensor]":
        """image: [1, 1, I, D]. context: [1, 1, T, D]; its position is 0, no turn."""
        image_modulation, context_modulation = modulation
        dtype = self.attention.dtype(positions.lengths)
        attention, context_attention = self.attention.joint(
            self.image.attend(image, positions.image, image_modulation, dtype),
            self.context.attend(context, None, context_modulation, dtype),
            positions.lengths,
        )
        image = self.image.finish(image, attention, image_modulation)
        return image, self.context.finish(context, context_attention, context_modulation)


class SingleBlock(_Heads):
    """Attention and feed-forward side by side over one sequence (diffusers' FluxSingleTransformerBlock)."""

    def __init__(self, config: TransformerConfig, weights: Weights):
        super().__init__(config, weights, _IMAGE_NAMES)
        dim = config.inner_dim
        self.mlp = Linear(
            weights, "proj_mlp", in_features=dim, out_features=4 * dim, activation="GELU_TANH", split="columns"
        )
        self.out = Linear(
            weights, "proj_out", in_features=(dim, 4 * dim), out_features=dim, in_zeros=self.padding, split="rows"
        )
        self.attention = Attention(weights)

    def __call__(self, x: "ttnn.Tensor", positions: "Positions", modulation: Adaptive) -> "ttnn.Tensor":
        """x: [1, 1, T + I, D], context rows first."""
        normed, dtype = self.norm(x, modulation), self.attention.dtype(positions.lengths)
        attention = self.attention(self.query_key_value(normed, positions.joint, dtype), positions.lengths)
        return self.out.add_to(x, modulation.gate, merge_heads(attention), self.mlp(normed))


@dataclass(frozen=True)
class Positions:
    """Where the tokens of an edit's sequence stand, chip by chip.

    Attributes:
        image: RoPE of the image rows (noise, then reference).
        joint: of context and image rows, one below the other on each chip.
    """

    image: Rope
    joint: Rope
    lengths: Lengths

    @classmethod
    def of(
        cls, image_ids: torch.Tensor, context_tokens: int, config: TransformerConfig, parallel: Parallel
    ) -> "Positions":
        """image_ids: [I, 3], of the noise and then of the reference tokens. Context tokens have id (0, 0, 0)."""
        lengths = Lengths.of(context_tokens, len(image_ids), parallel)
        axes, chips = config.axes_dims_rope, parallel.sp
        padding = chips * lengths.image_rows - len(image_ids)
        ids = torch.nn.functional.pad(image_ids, (0, 0, 0, padding)).unflatten(0, (chips, -1))
        joint_ids = torch.cat([ids.new_zeros(chips, lengths.context_rows, ids.shape[2]), ids], 1)
        return cls(
            image=Rope(ids.flatten(0, 1), axes, parallel),
            joint=Rope(joint_ids.flatten(0, 1), axes, parallel),
            lengths=lengths,
        )


class Transformer(_Adaptable):
    """From packed latents and text to the velocity of the noise."""

    def __init__(self, config: TransformerConfig, weights: Weights):
        super().__init__(weights)
        dim = config.inner_dim
        full = weights.full()
        stream = {"out_features": dim, "split": "columns" if weights.parallel.fused else None}
        self.x_embedder = Linear(full, "x_embedder", in_features=config.in_channels, **stream)
        self.context_embedder = Linear(full, "context_embedder", in_features=config.joint_attention_dim, **stream)
        self.double_blocks = [
            DoubleBlock(config, weights.at(f"transformer_blocks.{i}")) for i in range(config.num_layers)
        ]
        self.single_blocks = [
            SingleBlock(config, weights.at(f"single_transformer_blocks.{i}")) for i in range(config.num_single_layers)
        ]
        self.proj_out = Linear(full, "proj_out", in_features=dim, out_features=config.in_channels)

    @staticmethod
    def check_split(config: TransformerConfig, tp: int) -> None:
        """Raises `ValueError` for more chips than features can be split over: heads can always be filled up."""
        if 4 * config.inner_dim % (ttnn.TILE_SIZE * tp):
            raise ValueError(
                f"The transformer can't be split over {tp} chips by features: {4 * config.inner_dim} of its "
                f"feed-forward don't divide into as many whole tiles of {ttnn.TILE_SIZE}."
            )

    def __call__(
        self,
        image: "ttnn.Tensor",
        context: "ttnn.Tensor",
        positions: Positions,
        modulation: StepModulation,
        added: "ttnn.Tensor | None" = None,
    ) -> "ttnn.Tensor":
        """
        Args:
            image: [1, 1, I, C] bfloat16, packed: noise, and below it latents of the picture to edit if there is one.
            context: [1, 1, T, J] bfloat16, of the T5 encoder.
            added: [1, 1, I, D] bfloat16, where to write what the blocks add to the embedded image.

        Both are a chip's rows of the whole (`Parallel.scatter`). Returns the velocity of the image rows, of which only
        that of the noise means something, float32 [1, 1, I, C].
        """
        embedded = self.x_embedder(image)
        x = self._blocks(embedded, context, positions, modulation)
        if added is not None:
            ttnn.subtract(x, embedded, output_tensor=added)
        return self._velocity(x, modulation.out)

    def without_blocks(self, image: "ttnn.Tensor", added: "ttnn.Tensor", modulation: Adaptive) -> "ttnn.Tensor":
        """The same, if the blocks added what they did in another step; modulation: of the output norm."""
        return self._velocity(ttnn.add(self.x_embedder(image), added), modulation)

    def _blocks(
        self, image: "ttnn.Tensor", context: "ttnn.Tensor", positions: Positions, modulation: StepModulation
    ) -> "ttnn.Tensor":
        context = self.context_embedder(context)
        for block, step in zip(self.double_blocks, modulation.double, strict=True):
            image, context = block(image, context, positions, step)

        x = ttnn.concat([context, image], dim=2)
        for block, step in zip(self.single_blocks, modulation.single, strict=True):
            x = block(x, positions, step)

        context_rows, (*_, rows, dim) = positions.lengths.context_rows, x.shape
        return ttnn.slice(x, [0, 0, context_rows, 0], [1, 1, rows, dim])

    def _velocity(self, x: "ttnn.Tensor", modulation: Adaptive) -> "ttnn.Tensor":
        return self.proj_out(self.norm(x, modulation), dtype=ttnn.float32)
