"""Elementwise operations."""

import torch
import torch.nn.functional as F

from tests.silicon.case import Bench, cases
from tests.silicon.rules import NEAR, SAME
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.clip import quick_gelu

SCALING, SHIFT = 0.3611, 0.1159  # of the VAE's latents


@cases(NEAR, add_fp32_bf16={"dtypes": ("float32", "bfloat16")})
@cases(
    SAME,
    add_bf16={"dtypes": ("bfloat16", "bfloat16")},
    add_fp32_bf16bcast={"dtypes": ("float32", "float32")},
    add_fp32_rows={"dtypes": ("float32", "float32")},
    add_fp32_row_to_bf16={"dtypes": ("float32", "float32"), "to": "bfloat16"},
)
def addition(bench: Bench, a, b, dtypes, to=None):
    out = ttnn.add(*map(bench.put, (a, b), dtypes), **({"dtype": getattr(ttnn, to)} if to else {}))
    yield out, a + b


@cases(NEAR, multiply_bf16={})
def multiplication(bench: Bench, a, b):
    yield ttnn.multiply(bench.put(a), bench.put(b)), a * b


@cases(SAME, addcmul_gate={})
def gate(bench: Bench, x, y, g):
    yield ttnn.addcmul(bench.put(x), bench.put(y), bench.put(g)), x + y * g


@cases(
    SAME,
    multiply_scalar_fp32={"by": 32**-0.5, "dtype": "float32"},
    multiply_scalar_bf16={"by": SCALING, "dtype": "bfloat16"},
)
def scaling(bench: Bench, a, by, dtype):
    yield ttnn.multiply(bench.put(a, dtype), by), a * by


@cases(SAME, subtract_scalar_bf16={})
def shift(bench: Bench, a):
    yield ttnn.subtract(bench.put(a), SHIFT), a - SHIFT


@cases(SAME, add_scalar_fp32={})
def scale_and_shift(bench: Bench, a):
    yield ttnn.add(ttnn.multiply(bench.put(a, "float32"), 1 / SCALING), SHIFT), a / SCALING + SHIFT


@cases(SAME, typecast_fp32_bf16={}, typecast_ties={})
def rounding(bench: Bench, a):
    yield ttnn.typecast(bench.put(a, "float32"), ttnn.bfloat16), a


@cases(NEAR, silu_fp32={"dtype": "float32"}, silu_bf16={"dtype": "bfloat16"})
def silu(bench: Bench, a, dtype):
    yield ttnn.silu(bench.put(a, dtype)), F.silu(a)


@cases(NEAR, gelu_op_fp32={})
def gelu(bench: Bench, a):
    yield ttnn.gelu(bench.put(a, "float32")), F.gelu(a)


@cases(NEAR, quick_gelu={})
def gelu_of_clip(bench: Bench, a):
    yield quick_gelu(bench.put(a)), a * torch.sigmoid(1.702 * a)
