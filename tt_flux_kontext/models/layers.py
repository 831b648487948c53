"""Layers that the models share. Activations are [1, 1, tokens, features], in tiles: one sample at a time."""

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.weights import Weights


class Linear:
    """y = x W^T + b, then the activation, in one op.

    Several names make one layer of layers that share their input (q, k and v): their outputs lie side by side.

    Args:
        names: of the torch layers, from which W [out_features, in_features] and b [out_features] come.
        activation: TT-NN's name of one (`gelu_tanh`, `silu`, ...).
    """

    def __init__(
        self,
        weights: Weights,
        *names: str,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
    ):
        self.weight = weights.matrix([f"{name}.weight" for name in names], out_features, in_features)
        self.bias = weights.row([f"{name}.bias" for name in names], out_features) if bias else None
        self.activation = activation
        self.compute_config = weights.compute_config

    def __call__(self, x: "ttnn.Tensor", dtype: "ttnn.DataType | None" = None) -> "ttnn.Tensor":
        return ttnn.linear(
            x,
            self.weight,
            bias=self.bias,
            activation=self.activation,
            dtype=dtype or ttnn.bfloat16,
            compute_kernel_config=self.compute_config,
        )


class LayerNorm:
    """Over the last axis, with weight and bias (torch.nn.LayerNorm)."""

    def __init__(self, weights: Weights, name: str, size: int, eps: float):
        self.weight = weights.row([f"{name}.weight"], size)
        self.bias = weights.row([f"{name}.bias"], size)
        self.eps = eps
        self.compute_config = weights.compute_config

    def __call__(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        return ttnn.layer_norm(
            x, weight=self.weight, bias=self.bias, epsilon=self.eps, compute_kernel_config=self.compute_config
        )


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (torch.nn.RMSNorm, T5LayerNorm)."""

    def __init__(self, weights: Weights, name: str, size: int, eps: float):
        self.weight = weights.row([f"{name}.weight"], size)
        self.eps = eps
        self.compute_config = weights.compute_config

    def __call__(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        return ttnn.rms_norm(x, weight=self.weight, epsilon=self.eps, compute_kernel_config=self.compute_config)


class Embedding:
    """Rows of a table (torch.nn.Embedding)."""

    def __init__(self, weights: Weights, name: str, rows: int, width: int):
        self.weight = weights.table(f"{name}.weight", rows, width)

    def __call__(self, ids: "ttnn.Tensor") -> "ttnn.Tensor":
        """ids: uint32 [1, tokens], row-major. Returns [1, tokens, width] in tiles."""
        return ttnn.embedding(ids, self.weight, layout=ttnn.TILE_LAYOUT)


def split_heads(qkv: "ttnn.Tensor", heads: int, *, transpose_key: bool = False):
    """[1, 1, S, 3 heads d] -> query, key and value, each [1, heads, S, d]; a transposed key is [1, heads, d, S]."""
    return ttnn.experimental.nlp_create_qkv_heads(
        qkv, num_heads=heads, num_kv_heads=heads, transpose_k_heads=transpose_key
    )


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


def upload(x, device, dtype: "ttnn.DataType", *, tiled: bool = True) -> "ttnn.Tensor":
    """A torch tensor of this edit (not a parameter) to the device."""
    layout = ttnn.TILE_LAYOUT if tiled else ttnn.ROW_MAJOR_LAYOUT
    return ttnn.from_torch(x, dtype=dtype, layout=layout, device=device)
