"""Attention: TT-NN's fused one, alone and over two sequences, and the text encoders' with a bias."""

import torch
import torch.nn.functional as F

from tests.silicon.case import COMPACT, Bench, cases
from tests.silicon.rules import HALF
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.layers import Linear, biased_attention, split_heads
from tt_flux_kontext.precision import EXACT, Precision

HIFI3 = Precision(linear_weights="bfloat8_b", math_fidelity="HiFi3")
HEADS = 2  # where a vector's inputs don't tell
TEXT_HEADS = 4


def program(bench: Bench, queries=128, keys=512, approximate=False):
    """By default the chunks that the vectors were made with."""
    return ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=bench.device.compute_with_storage_grid_size(),
        q_chunk_size=queries,
        k_chunk_size=keys,
        exp_approx_mode=approximate,
    )


def attend(bench: Bench, q, k, v, precision, **program):
    return ttnn.transformer.scaled_dot_product_attention(
        q, k, v, is_causal=False, compute_kernel_config=precision.compute_config(bench.device), **program
    )


@cases(
    HALF,
    sdpa_32={},
    sdpa_32_odd={},
    sdpa_128={},
    sdpa_128_hifi3={"precision": HIFI3},
    sdpa_128_hifi2={"precision": COMPACT},
    sdpa_1024keys={"precision": COMPACT},
)
def attention(bench: Bench, q, k, v, precision=EXACT):
    out = attend(bench, *map(bench.put, (q, k, v)), precision, program_config=program(bench))
    yield out, F.scaled_dot_product_attention(q, k, v)


@cases(HALF, sdpa_vae={})
def attention_without_program(bench: Bench, q, k, v):
    """TT-NN then takes an approximate exponential."""
    yield attend(bench, *map(bench.put, (q, k, v)), EXACT), F.scaled_dot_product_attention(q, k, v)


@cases(HALF, sdpa_vae_exact_exp={"approximate": False}, sdpa_vae_approx_exp={"approximate": True})
def attention_in_small_chunks(bench: Bench, q, k, v, approximate):
    small = program(bench, 32, 32, approximate)
    out = attend(bench, *map(bench.put, (q, k, v)), EXACT, program_config=small)
    yield out, F.scaled_dot_product_attention(q, k, v)


def attend_jointly(bench: Bench, tensors, precision):
    return ttnn.transformer.joint_scaled_dot_product_attention(
        *tensors,
        joint_strategy="rear",
        program_config=program(bench),
        compute_kernel_config=precision.compute_config(bench.device),
    )


def joint_reference(q, k, v, jq, jk, jv):
    """Attention over both sequences, and the results split again."""
    whole = (torch.cat(pair, dim=2) for pair in ((q, jq), (k, jk), (v, jv)))
    return F.scaled_dot_product_attention(*whole).split([q.shape[2], jq.shape[2]], dim=2)


@cases(HALF, joint_sdpa_32={}, joint_sdpa_128={}, joint_sdpa_hifi2={"precision": COMPACT})
def joint_attention(bench: Bench, q, k, v, jq, jk, jv, precision=EXACT):
    tensors = (q, k, v, jq, jk, jv)
    yield from zip(attend_jointly(bench, map(bench.put, tensors), precision), joint_reference(*tensors), strict=True)


class Projected:
    """Query, key and value by one linear layer, whose bias stands in the padding of their rows too."""

    def __init__(self, bench: Bench, w, b):
        self.bench, self.w, self.b = bench, w, b
        weights = bench.weights({"l.weight": w, "l.bias": b})
        self.layer = Linear(weights, "l", in_features=w.shape[1], out_features=w.shape[0])

    def __call__(self, x, heads: int):
        """The three side by side on the device, and each [1, heads, S, d] in torch."""
        qkv = F.linear(x, self.w, self.b).bfloat16().float().unflatten(-1, (3, heads, -1))
        return self.layer(self.bench.put(x)), qkv[0].permute(2, 0, 3, 1, 4)


@cases(HALF, sdpa_odd_garbage={})
def attention_over_padding(bench: Bench, x, w, b):
    placed, qkv = Projected(bench, w, b)(x, HEADS)
    out = attend(bench, *split_heads(placed, HEADS), EXACT, program_config=program(bench))
    yield out, F.scaled_dot_product_attention(*qkv)


@cases(HALF, joint_odd_garbage={})
def joint_attention_over_padding(bench: Bench, x, z, w, b):
    project = Projected(bench, w, b)
    (first, qkv), (second, joint_qkv) = project(x, HEADS), project(z, HEADS)
    outputs = attend_jointly(bench, [*split_heads(first, HEADS), *split_heads(second, HEADS)], EXACT)
    yield from zip(outputs, joint_reference(*qkv, *joint_qkv), strict=True)


def biased_reference(q, k, v, bias, scale):
    attended = (q @ k.transpose(-1, -2) * scale + bias).softmax(dim=-1) @ v
    return attended.transpose(1, 2).flatten(2)[None]


@cases(
    HALF,
    biased_attention_t5={},
    biased_attention_clip77={"scale": 32**-0.5, "dtype": "float32"},
)
def attention_with_bias(bench: Bench, qkv, bias, scale=1.0, dtype="bfloat16"):
    config = EXACT.compute_config(bench.device)
    out = biased_attention(bench.put(qkv), bench.put(bias, dtype), TEXT_HEADS, config, scale=scale)
    yield out, biased_reference(*qkv[0].unflatten(-1, (3, TEXT_HEADS, -1)).permute(2, 0, 3, 1, 4), bias, scale)


def causal(tokens: int) -> torch.Tensor:
    return torch.full((1, 1, tokens, tokens), -1e9).triu(diagonal=1)


@cases(HALF, biased_attention_clip77_garbage={"scale": 32**-0.5})
def causal_attention_over_padding(bench: Bench, x, w, b, scale):
    placed, qkv = Projected(bench, w, b)(x, TEXT_HEADS)
    mask = causal(x.shape[2])
    config = EXACT.compute_config(bench.device)
    out = biased_attention(placed, bench.put(mask, "float32"), TEXT_HEADS, config, scale=scale)
    yield out, biased_reference(*qkv, mask, scale)


@cases(HALF, biased_attention_t5_garbage={})
def biased_attention_over_padding(bench: Bench, x, w, b, bias):
    placed, qkv = Projected(bench, w, b)(x, TEXT_HEADS)
    out = biased_attention(placed, bench.put(bias), TEXT_HEADS, EXACT.compute_config(bench.device))
    yield out, biased_reference(*qkv, bias, 1.0)
