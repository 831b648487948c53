"""Layers that the models share. Activations are [1, 1, tokens, features], in tiles: one sample at a time."""

import math
from collections.abc import Sequence

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.rope import Rope
from tt_flux_kontext.models.weights import Weights

# Parameters of activations that TT-NN otherwise takes from a coarse table: for GELU it is 1 % off.
_EXACT_FORMS = {"GELU": (0.0,)}


class Linear:
    """y = x W^T + b, then the activation, in one op.

    Several names make one layer of layers that share their input (q, k and v): their outputs lie side by side.

    Args:
        names: of the torch layers, from which W [out_features, in_features] and b [out_features] come.
        activation: name of a `ttnn.UnaryOpType`.
        in_features: of x, or of parts of it that lie side by side.
        out_zeros: features of zeros behind each layer's own.
        in_zeros: features that x has besides, behind its first part, and that don't count.
        split: over chips along TP: "columns", each gives its share of every layer's outputs; "rows", each takes its
            share of every part's inputs, and they are summed up (`Parallel.sum`).
        pieces: that each layer's outputs are made of, side by side: "columns" gives each chip its share of each.

    Of an input that is split over these chips, of which each has its share, the product gathers the others' shares.
    """

    def __init__(
        self,
        weights: Weights,
        *names: str,
        in_features: int | Sequence[int],
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        out_zeros: int = 0,
        in_zeros: int = 0,
        split: str | None = None,
        pieces: int = 1,
    ):
        matrices, biases = ([f"{name}.{part}" for name in names] for part in ("weight", "bias"))
        self.weight = weights.matrix(
            matrices,
            out_features,
            in_features,
            out_zeros=out_zeros,
            in_zeros=in_zeros,
            split=split,
            pieces=pieces,
        )
        self.bias = weights.row(biases, out_features, zeros=out_zeros, split=split, pieces=pieces) if bias else None
        self.split = split
        self.parallel = weights.parallel
        self.activation = activation and ttnn.UnaryWithParam(
            getattr(ttnn.UnaryOpType, activation), *_EXACT_FORMS.get(activation, ())
        )
        self.compute_config = weights.compute_config

    def __call__(self, *parts: "ttnn.Tensor", dtype: "ttnn.DataType | None" = None) -> "ttnn.Tensor":
        """Two parts of x, [1, 1, S, in_features] side by side, are read as one."""
        if self._is_share(parts[0]):
            (y,) = self._gathered_product(parts[0], dtype=dtype)
            return y
        # ttnn.linear would take an operation more for the activation, and parts would have to be copied together.
        y = ttnn.experimental.minimal_matmul(
            parts[0] if len(parts) == 1 else list(parts),
            self.weight,
            bias_tensor=self.bias,
            fused_activation=self.activation,
            dtype=dtype or ttnn.bfloat16,
            compute_kernel_config=self.compute_config,
        )
        return self.parallel.sum(y) if self.split == "rows" else y

    def add_to(self, residual: "ttnn.Tensor", gate: "ttnn.Tensor", *parts: "ttnn.Tensor") -> "ttnn.Tensor":
        """residual + y gate, the end of a block's branch. gate: [1, 1, 1, out_features]."""
        return ttnn.addcmul(residual, self(*parts), gate)

    def _is_share(self, x: "ttnn.Tensor") -> bool:
        """Whether x is what one chip along TP has of the layer's input."""
        return self.parallel.fused and x.shape[3] * self.parallel.tp == self.weight.shape[-2]

    def _gathered_product(
        self, x: "ttnn.Tensor", count: int = 1, dtype: "ttnn.DataType | None" = None
    ) -> "list[ttnn.Tensor]":
        """Of x [1, 1, S, in_features / tp]; the outputs in `count` equal parts."""
        return ttnn.experimental.all_gather_minimal_matmul_async(
            x,
            self.weight,
            bias_tensor=self.bias,
            fused_activation=self.activation,
            chunks=count,
            dtype=dtype or ttnn.bfloat16,
            compute_kernel_config=self.compute_config,
            **self.parallel.product(x),
        )


class Projections(Linear):
    """Linear layers that share their input, in one op; each has an output of its own, split over TP by columns."""

    def __init__(self, weights: Weights, *names: str, in_features: int, out_features: int, out_zeros: int = 0):
        super().__init__(
            weights,
            *names,
            in_features=in_features,
            out_features=out_features,
            out_zeros=out_zeros,
            split="columns",
        )
        self.count = len(names)

    def __call__(self, x: "ttnn.Tensor") -> "list[ttnn.Tensor]":
        """Outputs [1, 1, S, (out_features + out_zeros) / tp] in the order of the names."""
        if self._is_share(x):
            return self._gathered_product(x, self.count)
        return ttnn.experimental.minimal_matmul_split(
            x,
            self.weight,
            chunks=self.count,
            dim=-1,
            bias_tensor=self.bias,
            dtype=ttnn.bfloat16,
            compute_kernel_config=self.compute_config,
        )


class LayerNorm:
    """Over the last axis, with weight and bias (torch.nn.LayerNorm)."""

    def __init__(self, weights: Weights, name: str, size: int, eps: float):
        self.weight = weights.row([f"{name}.weight"], size)
        self.bias = weights.row([f"{name}.bias"], size)
        self.eps = eps
        self.norm_config = weights.norm_config

    def __call__(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        return ttnn.layer_norm(
            x, weight=self.weight, bias=self.bias, epsilon=self.eps, compute_kernel_config=self.norm_config
        )


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (torch.nn.RMSNorm, T5LayerNorm)."""

    def __init__(self, weights: Weights, name: str, size: int, eps: float):
        self.weight = weights.row([f"{name}.weight"], size)
        self.eps = eps
        self.norm_config = weights.norm_config

    def __call__(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        return ttnn.rms_norm(x, weight=self.weight, epsilon=self.eps, compute_kernel_config=self.norm_config)


def padded_heads(heads: int, head_dim: int, chips: int) -> int:
    """Heads for `HeadNorm` over so many chips, the same number on each.

    Its op takes two heads at least, and a chip's tiles by fours, and waits for ever for those missing in the last four.
    Heads of zeros fill them up: they add nothing to the others, and the matrix behind the attention has zeros for them.
    """
    whole = 4 // math.gcd(4, head_dim // 32)
    return math.ceil(max(heads / chips, 2) / whole) * whole * chips


class HeadNorm:
    """RMS norm of each head by itself, split into heads and RoPE, in one op; heads of a chip, by `padded_heads`."""

    def __init__(self, weights: Weights, name: str, heads: int, head_dim: int, eps: float):
        self.weight = weights.row([f"{name}.weight"] * heads, head_dim)
        self.heads = heads
        self.eps = eps
        self.device = weights.device
        self.norm_config = weights.norm_config

    def __call__(self, x: "ttnn.Tensor", rope: Rope | None, dtype: "ttnn.DataType | None" = None) -> "ttnn.Tensor":
        """x: [1, 1, S, heads d], query or key. rope: of its rows; None turns nothing. Returns [1, heads, S, d]."""
        rows = x.shape[2]
        # The op also spreads over chips, along a cluster axis and with semaphores; here it has one chip. Where rows
        # fill no tile it would turn the last ones by the angles of the first: it gets whole tiles.
        normed = ttnn.experimental.dit_fused_distributed_rmsnorm(
            with_rows(x, x.padded_shape[2]),
            None,
            self.device,
            [],
            epsilon=self.eps,
            num_heads_per_device=self.heads,
            per_head_norm=True,
            weight=self.weight,
            transformation_mat=rope and rope.turn,
            rope_cos=rope and rope.cos,
            rope_sin=rope and rope.sin,
            dtype=dtype,
            compute_kernel_config=self.norm_config,
        )
        return with_rows(normed, rows)


class Embedding:
    """Rows of a table (torch.nn.Embedding)."""

    def __init__(self, weights: Weights, name: str, rows: int, width: int):
        self.weight = weights.table(f"{name}.weight", rows, width)

    def __call__(self, ids: "ttnn.Tensor") -> "ttnn.Tensor":
        """ids: uint32 [1, tokens], row-major. Returns [1, tokens, width] in tiles."""
        return ttnn.embedding(ids, self.weight, layout=ttnn.TILE_LAYOUT)


def with_rows(x: "ttnn.Tensor", rows: int) -> "ttnn.Tensor":
    """The same tiles [1, B, S, D] with another count of rows that are no padding: a view."""
    one, outer, _, width = x.shape
    return ttnn.reshape(x, ttnn.Shape([one, outer, rows, width]), x.padded_shape)


def split_heads(qkv: "ttnn.Tensor", heads: int, *, transpose_key: bool = False):
    """[1, 1, S, 3 heads d] -> query, key and value, each [1, heads, S, d]; a transposed key is [1, heads, d, S]."""
    return ttnn.experimental.nlp_create_qkv_heads(
        qkv, num_heads=heads, num_kv_heads=heads, transpose_k_heads=transpose_key
    )


def to_heads(x: "ttnn.Tensor", heads: int) -> "ttnn.Tensor":
    """[1, 1, S, heads d] -> [1, heads, S, d]."""
    all_heads, *_ = ttnn.experimental.nlp_create_qkv_heads(x, num_heads=heads, num_kv_heads=0, transpose_k_heads=False)
    return all_heads


def merge_heads(x: "ttnn.Tensor") -> "ttnn.Tensor":
    """[1, heads, S, d] -> [1, 1, S, heads d]."""
    return ttnn.experimental.nlp_concat_heads(x)


def biased_attention(
    qkv: "ttnn.Tensor", bias: "ttnn.Tensor", heads: int, compute_config, *, scale: float = 1.0
) -> "ttnn.Tensor":
    """softmax(scale q k^T + bias) v; scores and softmax are float32, as a text encoder's need more than bfloat16.

    Args:
        qkv: [1, 1, S, 3 heads d].
        bias: [1, heads or 1, S, S].

    Returns [1, 1, S, heads d].
    """
    query, key, value = split_heads(qkv, heads, transpose_key=True)
    scores = ttnn.matmul(query, key, dtype=ttnn.float32, compute_kernel_config=compute_config)
    if scale != 1.0:
        scores = ttnn.multiply(scores, scale)
    probabilities = ttnn.softmax(
        ttnn.add(scores, bias), dim=-1, numeric_stable=True, compute_kernel_config=compute_config
    )
    return merge_heads(ttnn.matmul(probabilities, value, dtype=ttnn.bfloat16, compute_kernel_config=compute_config))
