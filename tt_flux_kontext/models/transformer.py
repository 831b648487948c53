"""The Flux diffusion transformer (diffusers' FluxTransformer2DModel) without its modulation (`modulation.py`)."""

from dataclasses import dataclass
from typing import get_type_hints

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.checkpoint.files import LAYERS, check_fields
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

    @property
    def padded_heads(self) -> int:
        """Heads as the device has them: the model's, and some of zeros where their norm needs them."""
        return padded_heads(self.num_attention_heads, self.attention_head_dim)

    @property
    def padding(self) -> int:
        """Features of the heads of zeros."""
        return (self.padded_heads - self.num_attention_heads) * self.attention_head_dim


class _Adaptable:
    """What blocks share: the norm before their linear layers, adapted by shift and 1 + scale."""

    def __init__(self, weights: Weights):
        self.norm_config = weights.norm_config

    def norm(self, x: "ttnn.Tensor", modulation: Adaptive) -> "ttnn.Tensor":
        return ttnn.layer_norm(
            x,
            weight=modulation.scale,
            bias=modulation.shift,
            epsilon=EPS,
            compute_kernel_config=self.norm_config,
        )


class _Stream(_Adaptable):
    """The image or the context stream of a double block: all but the attention, in which both meet."""

    def __init__(self, config: TransformerConfig, weights: Weights, names: dict[str, str]):
        super().__init__(weights)
        dim = config.inner_dim
        self.heads = config.padded_heads
        qkv = (names["q"], names["k"], names["v"])
        self.qkv = Projections(weights, *qkv, in_features=dim, out_features=dim, out_zeros=config.padding)
        self.norm_q = HeadNorm(weights, names["norm_q"], self.heads, config.attention_head_dim, EPS)
        self.norm_k = HeadNorm(weights, names["norm_k"], self.heads, config.attention_head_dim, EPS)
        self.out = Linear(
            weights, names["out"], in_features=dim, out_features=dim, in_zeros=(dim, config.padding)
        )
        feed_forward = names["feed_forward"]
        self.feed_forward_in = Linear(
            weights, f"{feed_forward}.net.0.proj", in_features=dim, out_features=4 * dim, activation="GELU_TANH"
        )
        self.feed_forward_out = Linear(weights, f"{feed_forward}.net.2", in_features=4 * dim, out_features=dim)

    def query_key_value(self, x: "ttnn.Tensor", rope: Rope | None, modulation: StreamModulation):
        query, key, value = self.qkv(self.norm(x, modulation.attention))
        return self.norm_q(query, rope), self.norm_k(key, rope), to_heads(value, self.heads)

    def finish(self, x: "ttnn.Tensor", attention: "ttnn.Tensor", modulation: StreamModulation) -> "ttnn.Tensor":
        x = ttnn.addcmul(x, self.out(merge_heads(attention)), modulation.attention.gate)
        hidden = self.feed_forward_in(self.norm(x, modulation.feed_forward))
        return ttnn.addcmul(x, self.feed_forward_out(hidden), modulation.feed_forward.gate)


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
        self.attention_config = weights.attention_config(config.attention_head_dim)
        self.compute_config = weights.compute_config

    def __call__(
        self,
        image: "ttnn.Tensor",
        context: "ttnn.Tensor",
        rope: Rope,
        modulation: tuple[StreamModulation, StreamModulation],
    ) -> "tuple[ttnn.Tensor, ttnn.Tensor]":
        """image: [1, 1, I, D]. context: [1, 1, T, D]. rope: of the image rows; the context's position is 0, no turn."""
        image_modulation, context_modulation = modulation
        attention, context_attention = ttnn.transformer.joint_scaled_dot_product_attention(
            *self.image.query_key_value(image, rope, image_modulation),
            *self.context.query_key_value(context, None, context_modulation),
            joint_strategy="rear",
            program_config=self.attention_config,
            compute_kernel_config=self.compute_config,
        )
        image = self.image.finish(image, attention, image_modulation)
        return image, self.context.finish(context, context_attention, context_modulation)


class SingleBlock(_Adaptable):
    """Attention and feed-forward side by side over one sequence (diffusers' FluxSingleTransformerBlock)."""

    def __init__(self, config: TransformerConfig, weights: Weights):
        super().__init__(weights)
        dim = config.inner_dim
        self.heads = config.padded_heads
        qkv = ("attn.to_q", "attn.to_k", "attn.to_v")
        self.qkv = Projections(weights, *qkv, in_features=dim, out_features=dim, out_zeros=config.padding)
        self.norm_q = HeadNorm(weights, "attn.norm_q", self.heads, config.attention_head_dim, EPS)
        self.norm_k = HeadNorm(weights, "attn.norm_k", self.heads, config.attention_head_dim, EPS)
        self.mlp = Linear(weights, "proj_mlp", in_features=dim, out_features=4 * dim, activation="GELU_TANH")
        self.out = Linear(
            weights, "proj_out", in_features=5 * dim, out_features=dim, in_zeros=(dim, config.padding)
        )
        self.attention_config = weights.attention_config(config.attention_head_dim)
        self.compute_config = weights.compute_config

    def __call__(self, x: "ttnn.Tensor", rope: Rope, modulation: Adaptive) -> "ttnn.Tensor":
        """x: [1, 1, T + I, D], context rows first. rope: of all rows."""
        normed = self.norm(x, modulation)
        query, key, value = self.qkv(normed)
        attention = ttnn.transformer.scaled_dot_product_attention(
            self.norm_q(query, rope),
            self.norm_k(key, rope),
            to_heads(value, self.heads),
            is_causal=False,
            program_config=self.attention_config,
            compute_kernel_config=self.compute_config,
        )
        return ttnn.addcmul(x, self.out(merge_heads(attention), self.mlp(normed)), modulation.gate)


@dataclass(frozen=True)
class Positions:
    """RoPE of an edit's sequence: of the image rows (noise, then reference), and of context and image rows together."""

    image: Rope
    joint: Rope


class Transformer(_Adaptable):
    """From packed latents and text to the velocity of the noise."""

    def __init__(self, config: TransformerConfig, weights: Weights):
        super().__init__(weights)
        dim = config.inner_dim
        self.config = config
        self.device = weights.device
        full = weights.full()
        self.x_embedder = Linear(full, "x_embedder", in_features=config.in_channels, out_features=dim)
        self.context_embedder = Linear(
            full, "context_embedder", in_features=config.joint_attention_dim, out_features=dim
        )
        self.double_blocks = [
            DoubleBlock(config, weights.at(f"transformer_blocks.{i}")) for i in range(config.num_layers)
        ]
        self.single_blocks = [
            SingleBlock(config, weights.at(f"single_transformer_blocks.{i}")) for i in range(config.num_single_layers)
        ]
        self.proj_out = Linear(full, "proj_out", in_features=dim, out_features=config.in_channels)

    def positions(self, image_ids: torch.Tensor, context_tokens: int) -> Positions:
        """image_ids: [I, 3], of the noise and then of the reference tokens. Context tokens have id (0, 0, 0)."""
        joint_ids = torch.cat([torch.zeros(context_tokens, image_ids.shape[1]), image_ids])
        axes = self.config.axes_dims_rope
        return Positions(
            image=Rope(image_ids, axes, self.device),
            joint=Rope(joint_ids, axes, self.device),
        )

    def __call__(
        self,
        latents: "ttnn.Tensor",
        reference: "ttnn.Tensor | None",
        context: "ttnn.Tensor",
        positions: Positions,
        modulation: StepModulation,
    ) -> "ttnn.Tensor":
        """
        Args:
            latents: [1, 1, N, C] bfloat16, packed noise.
            reference: [1, 1, R, C] bfloat16, packed latents of the picture to edit; None for text to image.
            context: [1, 1, T, J] bfloat16, of the T5 encoder.

        Returns the velocity of the noise, float32 [1, 1, N, C].
        """
        noise_rows, context_rows = latents.shape[2], context.shape[2]
        image = latents if reference is None else ttnn.concat([latents, reference], dim=2)
        image = self.x_embedder(image)
        context = self.context_embedder(context)
        for block, step in zip(self.double_blocks, modulation.double, strict=True):
            image, context = block(image, context, positions.image, step)

        x = ttnn.concat([context, image], dim=2)
        for block, step in zip(self.single_blocks, modulation.single, strict=True):
            x = block(x, positions.joint, step)

        x = ttnn.slice(x, [0, 0, context_rows, 0], [1, 1, context_rows + noise_rows, x.shape[3]])
        return self.proj_out(self.norm(x, modulation.out), dtype=ttnn.float32)
