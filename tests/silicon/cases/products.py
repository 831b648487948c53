"""Products: linear layers, and the two inside the text encoders' attention."""

from functools import partial

import torch
import torch.nn.functional as F

from tests.silicon.case import COMPACT, Bench, cases
from tests.silicon.rules import NEAR, SAME
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.layers import Linear, Projections
from tt_flux_kontext.models.modulation import _FewRows
from tt_flux_kontext.models.weights import write
from tt_flux_kontext.precision import EXACT

ACTIVATIONS = {
    None: lambda x: x,
    "GELU": F.gelu,
    "GELU_TANH": partial(F.gelu, approximate="tanh"),
    "SILU": F.silu,
}


@cases(
    NEAR,
    linear_bf16_hifi4={},
    linear_bf16_hifi4_nobias={},
    linear_bf16_longK={},
    linear_bf16_fp32out={"dtype": "float32"},
    linear_bf16_gelu_tanh={"activation": "GELU_TANH"},
    linear_oddrows={},
    linear_bfp8_hifi2={"precision": COMPACT},
    linear_bfp8_longK={"precision": COMPACT},
    linear_bfp8_gelu_tanh={"precision": COMPACT, "activation": "GELU_TANH"},
)
def linear(bench: Bench, x, w, b=None, precision=EXACT, activation=None, dtype="bfloat16"):
    layer = Linear(
        bench.weights({"l.weight": w} | ({} if b is None else {"l.bias": b}), precision),
        "l",
        in_features=w.shape[1],
        out_features=w.shape[0],
        bias=b is not None,
        activation=activation,
    )
    yield layer(bench.put(x), dtype=getattr(ttnn, dtype)), ACTIVATIONS[activation](F.linear(x, w, b))


@cases(NEAR, linear_gelu_precise={})
def exact_gelu(bench: Bench, x, w):
    yield from linear(bench, x, w.T, activation="GELU")


@cases(NEAR, linear_bf16_gelu={})
def gelu_of_a_table(bench: Bench, x, w, b):
    """What the op does without a parameter for its activation; our layers give one."""
    out = ttnn.experimental.minimal_matmul(
        bench.put(x),
        bench.put(w.T),
        bias_tensor=bench.put(b[None]),
        fused_activation=ttnn.UnaryWithParam(ttnn.UnaryOpType.GELU),
        dtype=ttnn.bfloat16,
        compute_kernel_config=EXACT.compute_config(bench.device),
    )
    yield out, F.gelu(F.linear(x, w, b))


@cases(NEAR, linear_two_parts={}, linear_two_parts_odd={})
def linear_of_two_parts(bench: Bench, a, b, w, bias):
    weights = bench.weights({"l.weight": w, "l.bias": bias})
    layer = Linear(weights, "l", in_features=w.shape[1], out_features=w.shape[0])
    yield layer(bench.put(a), bench.put(b)), F.linear(torch.cat([a, b], dim=-1), w, bias)


@cases(NEAR, projections_bf16={}, projections_bfp8={"precision": COMPACT})
def projections(bench: Bench, x, w, b, precision=EXACT):
    ws, bs, size = w.chunk(3), b.chunk(3), x.shape[-1]
    tensors = {f"{name}.weight": part for name, part in zip("qkv", ws)}
    tensors |= {f"{name}.bias": part for name, part in zip("qkv", bs)}
    layer = Projections(bench.weights(tensors, precision), *"qkv", in_features=size, out_features=size)
    yield from zip(layer(bench.put(x)), map(partial(F.linear, x), ws, bs), strict=True)


@cases(NEAR, fewrows_fp32={}, fewrows_fp32_silu={"activation": "SILU"})
def few_rows(bench: Bench, x, w, b, activation=None):
    weights = bench.weights({"l.weight": w, "l.bias": b})
    layer = _FewRows(weights, "l", in_features=w.shape[1], out_features=w.shape[0], activation=activation)
    yield layer(bench.put(x, "float32")), ACTIVATIONS[activation](F.linear(x, w, b))


@cases(NEAR, scores_fp32={})
def scores(bench: Bench, q, k):
    config = EXACT.compute_config(bench.device)
    yield ttnn.matmul(bench.put(q), bench.put(k), dtype=ttnn.float32, compute_kernel_config=config), q @ k


@cases(NEAR, probabilities_times_value={})
def probabilities_times_value(bench: Bench, p, v):
    config = EXACT.compute_config(bench.device)
    out = ttnn.matmul(bench.put(p, "float32"), bench.put(v), dtype=ttnn.bfloat16, compute_kernel_config=config)
    yield out, p @ v


@cases(SAME, replayed_product={})
def replay(bench: Bench):
    """Without a vector. A trace is replayed with other values than it was captured with."""
    ones = [(torch.arange(64 * 64).view(64, 64) % number == 0).float() for number in (3, 5, 7)]  # and zeros
    x, y = bench.put(ones[0]), bench.put(ones[1])

    def work() -> "ttnn.Tensor":
        return ttnn.matmul(x, y, dtype=ttnn.float32)

    work()
    trace = ttnn.begin_trace_capture(bench.device)
    product = work()
    ttnn.end_trace_capture(bench.device, trace)
    ttnn.execute_trace(bench.device, trace, blocking=False)
    write(ones[2], x)
    ttnn.execute_trace(bench.device, trace, blocking=False)
    yield product, ones[2] @ ones[1]
