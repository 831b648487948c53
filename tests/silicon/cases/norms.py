"""Norms and softmax."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from tests.silicon.case import Bench, cases, host
from tests.silicon.rules import HALF, NEAR
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.feature_map import FeatureMap, to_bfloat16, to_float32
from tt_flux_kontext.models.group_norm import GroupNorm
from tt_flux_kontext.models.layers import HeadNorm, LayerNorm, RMSNorm, padded_heads
from tt_flux_kontext.models.rope import Rope, rope_tables
from tt_flux_kontext.precision import EXACT

EPS = 1e-6
AXES = {32: (8, 12, 12), 64: (16, 24, 24), 128: (16, 56, 56)}  # features of a head by position axis
ODD_MAP, SMALL_MAP, SQUARE_MAP, LARGE_MAP = (12, 20), (8, 8), (16, 16), (32, 32)


@cases(
    NEAR,
    layer_norm_192={},
    layer_norm_3072={},
    layer_norm_77rows={},
    layer_norm_1row={},
    layer_norm_offset={},
    layer_norm_small={},
)
def layer_norm(bench: Bench, x, w, b):
    norm = LayerNorm(bench.weights({"n.weight": w, "n.bias": b}), "n", len(w), EPS)
    yield norm(bench.put(x)), F.layer_norm(x, w.shape, w, b, EPS)


@cases(NEAR, layer_norm_modulated={})
def modulated_layer_norm(bench: Bench, x, w, b):
    """Scale and shift [1, 1, 1, D], as the transformer's blocks give them."""
    config = EXACT.norm_config(bench.device)
    out = ttnn.layer_norm(
        bench.put(x), weight=bench.put(w), bias=bench.put(b), epsilon=EPS, compute_kernel_config=config
    )
    yield out, F.layer_norm(x, x.shape[-1:], w.flatten(), b.flatten(), EPS)


@cases(NEAR, ln_fp32in_offset={})
def layer_norm_of_float32(bench: Bench, x, w, b):
    norm = LayerNorm(bench.weights({"n.weight": w, "n.bias": b}), "n", len(w), EPS)
    yield norm(bench.put(x, "float32")), F.layer_norm(x, w.shape, w, b, EPS)


@cases(NEAR, rms_norm_128={})
def rms_norm(bench: Bench, x, w):
    norm = RMSNorm(bench.weights({"n.weight": w}), "n", len(w), EPS)
    yield norm(bench.put(x)), F.rms_norm(x, w.shape, w, EPS)


@cases(
    NEAR,
    head_norm_plain_32={},
    head_norm_plain_8x32={},
    head_norm_plain_128={},
    head_norm_plain_77rows={},
    head_norm_rope_32={},
    head_norm_rope_8x32={},
    head_norm_rope_64={},
    head_norm_rope_128={},
    head_norm_rope_20rows={},
    head_norm_rope_77rows={"rows": 64},
    head_norm_rope_77rows_whole_tiles={},
    head_norm_rope_24x128_odd={"rows": 64},
)
def head_norm(bench: Bench, x, w, ids=None, rows=None):
    """With heads of zeros where the op needs more of them. The first `rows` are compared, by default all."""
    size = len(w)
    heads = x.shape[-1] // size
    padded = padded_heads(heads, size, chips=1)
    rope = None if ids is None else Rope(ids.float(), AXES[size], Parallel(Mesh(bench.device)))
    norm = HeadNorm(bench.weights({"n.weight": w}), "n", padded, size, EPS)
    out = norm(bench.put(F.pad(x, (0, (padded - heads) * size))), rope)
    reference = F.rms_norm(x.view(1, -1, heads, size), (size,), w, EPS).transpose(1, 2)
    if rope:
        cos, sin = rope_tables(ids, AXES[size])
        turned = torch.stack([-reference[..., 1::2], reference[..., ::2]], dim=-1).flatten(-2)
        reference = reference * cos + turned * sin
    yield host(out)[:, :heads, :rows], reference[:, :, :rows]


def group_norm(bench: Bench, values, x, w, b, size):
    """Of a map of float32 or bfloat16 values on the device; x are the same on the host."""
    weights, config = bench.weights({"n.weight": w, "n.bias": b}), SimpleNamespace(norm_num_groups=32)
    out = GroupNorm(config, weights, "n", len(w))(FeatureMap(values, *size))
    reference = F.group_norm(x[0].transpose(1, 2), 32, w, b, EPS).transpose(1, 2)[None]
    return out, reference


@cases(
    HALF,
    gn_fp32in_32={"size": LARGE_MAP},
    gn_fp32in_odd={"size": ODD_MAP},
    gn_fp32in_128_shift={"size": SQUARE_MAP},
)
def group_norm_in_float32(bench: Bench, x, w, b, size):
    values = to_float32(FeatureMap(bench.put(x), *size)).values
    out, reference = group_norm(bench, values, x, w, b, size)
    yield to_bfloat16(out).values, reference


@cases(HALF, gn_fp32_input={"size": SQUARE_MAP})
def group_norm_to_float32(bench: Bench, x, w, b, size):
    out, reference = group_norm(bench, bench.put(x, "float32"), x, w, b, size)
    yield out.values, reference


@cases(
    HALF,
    group_norm_32={"size": LARGE_MAP},
    group_norm_64={"size": SQUARE_MAP},
    group_norm_128={"size": SMALL_MAP},
    group_norm_128_shift={"size": SQUARE_MAP},
    group_norm_odd={"size": ODD_MAP},
)
def group_norm_in_bfloat16(bench: Bench, x, w, b, size):
    out, reference = group_norm(bench, bench.put(x), x, w, b, size)
    yield out.values, reference


@cases(HALF, group_norm_even_shifted={"size": SQUARE_MAP}, group_norm_odd_garbage={"size": ODD_MAP})
def group_norm_of_a_sum(bench: Bench, x, s, w, b, size):
    """The sum is one row's, so it stands in the padding of the map too."""
    values = ttnn.add(bench.put(x), bench.put(s))
    out, reference = group_norm(bench, values, (x + s).bfloat16().float(), w, b, size)
    yield out.values, reference


@cases(NEAR, softmax_fp32={}, softmax_fp32_77={}, softmax_fp32_masked={})
def softmax(bench: Bench, x):
    config = EXACT.compute_config(bench.device)
    out = ttnn.softmax(bench.put(x, "float32"), dim=-1, numeric_stable=True, compute_kernel_config=config)
    yield out, x.softmax(dim=-1)
