"""The T5 v1.1 encoder (transformers' T5EncoderModel; arXiv:1910.10683), run as Flux runs it: without a mask."""

import math
from functools import lru_cache, partial

import torch
from transformers import T5Config

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.checkpoint.files import LAYERS, transformers_config
from tt_flux_kontext.models.from_host import FromHost
from tt_flux_kontext.models.layers import Embedding, Linear, RMSNorm, biased_attention
from tt_flux_kontext.models.weights import Weights, upload

_ACTIVATIONS = {"gelu_new": "GELU_TANH", "gelu": "GELU", "relu": "RELU", "silu": "SILU"}

_FIELDS = {
    "vocab_size": int,
    "d_model": int,
    "d_kv": int,
    "d_ff": int,
    "num_layers": LAYERS,
    "num_heads": int,
    "relative_attention_num_buckets": int,
    "relative_attention_max_distance": int,
    "layer_norm_epsilon": float,
    "feed_forward_proj": str,
    "dense_act_fn": str,
    "is_gated_act": bool,
}


def t5_config(config: dict) -> T5Config:
    """transformers' config of text_encoder_2/config.json; raises `CheckpointError` where TT-NN can't run it."""
    result = transformers_config(T5Config, "text_encoder_2/config.json", config, _FIELDS)
    if result.d_kv % 32:
        raise CheckpointError(f"text_encoder_2/config.json: d_kv ({result.d_kv}) must be a multiple of 32.")
    if result.dense_act_fn not in _ACTIVATIONS:
        raise CheckpointError(f"text_encoder_2/config.json: dense_act_fn {result.dense_act_fn} is not supported.")
    buckets, distance = result.relative_attention_num_buckets, result.relative_attention_max_distance
    if buckets < 4 or distance <= buckets // 4:
        raise CheckpointError(
            f"text_encoder_2/config.json: relative_attention_num_buckets ({buckets}) must be at least 4, and "
            f"relative_attention_max_distance ({distance}) more than a quarter of it."
        )
    return result


def relative_position_buckets(tokens: int, buckets: int, max_distance: int) -> torch.Tensor:
    """Bucket of every (query, key) pair, int64 [tokens, tokens].

    Half of the buckets are for keys after the query. In each half the first half holds one distance each; the others
    grow logarithmically up to max_distance, and the last holds all beyond.
    """
    position = torch.arange(tokens)
    offset = position[None, :] - position[:, None]
    distance = offset.abs()
    half, exact = buckets // 2, buckets // 4
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


def _upload_buckets(config: T5Config, device, tokens: int) -> "ttnn.Tensor":
    """uint32 [tokens, tokens], row-major."""
    distances = config.relative_attention_num_buckets, config.relative_attention_max_distance
    return upload(relative_position_buckets(tokens, *distances), device, ttnn.uint32, tiled=False)


class T5Layer:
    """Self-attention and feed-forward, each behind an RMS norm and added to its input."""

    def __init__(self, config: T5Config, weights: Weights):
        dim, inner = config.d_model, config.num_heads * config.d_kv
        attention, feed_forward = weights.at("layer.0.SelfAttention"), weights.at("layer.1.DenseReluDense")
        activation = _ACTIVATIONS[config.dense_act_fn]
        self.heads = config.num_heads // weights.parallel.tp
        self.attention_norm = RMSNorm(weights, "layer.0.layer_norm", dim, config.layer_norm_epsilon)
        columns, rows = {"bias": False, "split": "columns"}, {"bias": False, "split": "rows"}
        self.qkv = Linear(attention, "q", "k", "v", in_features=dim, out_features=inner, **columns)
        self.out = Linear(attention, "o", in_features=inner, out_features=dim, **rows)
        self.feed_forward_norm = RMSNorm(weights, "layer.1.layer_norm", dim, config.layer_norm_epsilon)
        columns |= {"in_features": dim, "out_features": config.d_ff}
        if config.is_gated_act:
            self.wi = Linear(feed_forward, "wi_0", activation=activation, **columns)
            self.gate = Linear(feed_forward, "wi_1", **columns)
        else:
            self.wi = Linear(feed_forward, "wi", activation=activation, **columns)
            self.gate = None
        self.wo = Linear(feed_forward, "wo", in_features=config.d_ff, out_features=dim, **rows)
        self.compute_config = weights.compute_config

    def __call__(self, x: "ttnn.Tensor", position_bias: "ttnn.Tensor") -> "ttnn.Tensor":
        """x: [1, 1, S, d_model]. position_bias: [1, heads of a chip, S, S].

        Scores are not scaled by 1 / sqrt(d_kv) in T5.
        """
        qkv = self.qkv(self.attention_norm(x))
        x = ttnn.add(x, self.out(biased_attention(qkv, position_bias, self.heads, self.compute_config)))
        normed = self.feed_forward_norm(x)
        hidden = self.wi(normed)
        if self.gate:
            hidden = ttnn.multiply(hidden, self.gate(normed))
        return ttnn.add(x, self.wo(hidden))


class T5Encoder(FromHost):
    """From token ids to the context of the transformer."""

    def __init__(self, config: T5Config, weights: Weights):
        self.config = config
        self.parallel = weights.parallel
        self.device = weights.device
        embedding = weights.either("shared.weight", "encoder.embed_tokens.weight").removesuffix(".weight")
        self.embedding = Embedding(weights, embedding, config.vocab_size, config.d_model)
        self.layers = [T5Layer(config, weights.at(f"encoder.block.{i}")) for i in range(config.num_layers)]
        self.relative_attention_bias = Embedding(
            weights,
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            config.relative_attention_num_buckets,
            config.num_heads,
        )
        self.final_layer_norm = RMSNorm(weights, "encoder.final_layer_norm", config.d_model, config.layer_norm_epsilon)
        self.buckets = lru_cache(maxsize=1)(partial(_upload_buckets, config, self.device))

    @staticmethod
    def divides(config: T5Config, chips: int) -> bool:
        """Whether its heads and feed-forward can be split over so many chips."""
        return config.num_heads % chips == 0 and config.d_ff % (ttnn.TILE_SIZE * chips) == 0

    def position_bias(self, buckets: "ttnn.Tensor") -> "ttnn.Tensor":
        """The bias that all layers add to their scores, [1, heads of a chip, S, S]. buckets: uint32 [S, S]."""
        bias = ttnn.permute(self.relative_attention_bias(buckets), (2, 0, 1))
        bias = ttnn.reshape(bias, (1, self.config.num_heads, *buckets.shape))
        return self.parallel.partition(bias, dim=1)

    def host_input(self, ids: torch.Tensor) -> "tuple[ttnn.Tensor, ttnn.Tensor]":
        """ids: int64 [S], padding included. Returns them, uint32 [1, S], and the buckets of their positions."""
        ids = ttnn.from_torch(ids[None], dtype=ttnn.uint32, layout=ttnn.ROW_MAJOR_LAYOUT)
        return ids, self.buckets(ids.shape[1])

    def on_device(self, ids: "ttnn.Tensor", buckets: "ttnn.Tensor") -> "ttnn.Tensor":
        """ids: uint32 [1, S]. buckets: uint32 [S, S]. Returns the last hidden state, bfloat16 [1, 1, S, d_model]."""
        position_bias = self.position_bias(buckets)
        x = ttnn.reshape(self.embedding(ids), (1, 1, ids.shape[1], self.config.d_model))
        for layer in self.layers:
            x = layer(x, position_bias)
        return self.final_layer_norm(x)
