"""Matrix products with the multipliers' and the accumulators' precision.

The first of a fidelity's phases, the product of the operands' high bits, is not summed exactly: of every 8 terms along
K each is rounded to a grid 10 bits below the largest one's exponent, ties away from zero. That is 3e-4 of an fp32
result; rounded to bf16, one element in ten comes out next to the exact sum's. Following it costs some six times the
product, so that only products up to ``GROUPED_TERMS`` do, on a CPU, which agree with the kernels to 2e-4. Larger ones
differ from them by 1e-3, and from the truth by as much as the kernels. The other phases round likewise, 32 times as
finely and more, which is left out.

Products are in fp32, to which bf16 operands are converted tile by tile: torch's bf16 product is four to a hundred times
slower on a CPU without units for it. On one with them it is quicker than fp32, but torch gives its result in bf16; it
is taken for large products where that is asked for. On x86 oneDNN adds a bias and applies GELU before it rounds; the
cuts to 11 significant bits on the way are left out there, so that one element in ten comes out next to fp32's.
"""

import functools
import platform
from collections.abc import Callable

import torch

from . import vector_unit
from .checks import check
from .formats import (
    aligned_sum,
    as_multiplied,
    leading_power,
    multiplier_operands,
    multiplier_phases,
    pack,
    round_to_bf16_,
    storage_dtype,
)
from .grouped_sums import grouped_sums
from .types import DataType, MathFidelity, WormholeComputeKernelConfig

ACCURATE = WormholeComputeKernelConfig(math_fidelity=MathFidelity.HiFi4, fp32_dest_acc_en=True)
"""The configuration of operations called without one."""

ROWS, COLUMNS = 1024, 1024
"""Output tile of a product: large enough that converting operands costs little, small enough for the cache."""

GROUPED_TERMS = 1 << 26
"""Terms (M * K * N) of the largest product whose terms are rounded."""

K_STEP = 16
"""Terms that a bf16 destination adds up before it rounds."""
K_BLOCK = 128
"""Terms a core sums before the packer adds them to the partial result in L1 (four tiles, a common ``in0_block_w``)."""

X86 = platform.machine() in ("x86_64", "AMD64")
FUSED = {None: ("none", ""), vector_unit.gelu: ("gelu", "none"), vector_unit.gelu_tanh: ("gelu", "tanh")}
"""Activations that oneDNN applies to a product before it rounds, by its names."""

Finish = Callable[[torch.Tensor, slice, slice], torch.Tensor]
"""``finish(tile, rows, columns)``: what follows product and bias, on an fp32 tile; returns the tile."""
Activation = Callable[[torch.Tensor], torch.Tensor]


def copied(tile: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """The ``Finish`` of a product that comes to what follows through a source register."""
    return as_multiplied(tile)


def gemm(
    in0: torch.Tensor,
    in1: torch.Tensor,
    config: WormholeComputeKernelConfig,
    dtype: DataType,
    bias: torch.Tensor | None = None,
    finish: Finish | None = None,
    activation: Activation | None = None,
) -> torch.Tensor:
    """``activation(finish(in0[M, K] @ in1[K, N] + bias[1 or M, N]))``, packed as ``dtype``.

    Operands are bf16 or fp32, of any strides. The matrix unit adds the bias, to the product in L1.
    """
    check(config.math_fidelity is not MathFidelity.Invalid, "matmul", "the compute kernel config has no math fidelity")
    grouped = is_grouped(in0.numel() * in1.shape[1], in0.device)
    exact = config.fp32_dest_acc_en and not grouped
    if exact and dtype is DataType.BFLOAT16 and finish in (None, copied) and is_native(in0, in1, bias, activation):
        return native_product(in0, in1, config.math_fidelity, bias, activation)
    out = torch.empty(in0.shape[0], in1.shape[1], dtype=storage_dtype(dtype), device=in0.device)
    for row in range(0, out.shape[0], ROWS):
        rows = slice(row, min(row + ROWS, out.shape[0]))
        left = in0[rows]
        for column in range(0, out.shape[1], COLUMNS):
            columns = slice(column, min(column + COLUMNS, out.shape[1]))
            tile = product(left, in1[:, columns], config, grouped)
            if bias is not None:
                tile = add_bias(tile, bias[rows if bias.shape[0] > 1 else slice(0, 1), columns])
            if finish is not None:
                tile = finish(tile, rows, columns)
            if activation is not None:
                tile = activation(tile)
            out[rows, columns] = pack(tile, dtype)
    return out


def add_bias(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return aligned_sum(product, bias.to(torch.float32))


def is_grouped(terms: int, device: torch.device) -> bool:
    """Whether a product of so many terms (M * K * N) has them rounded in groups."""
    return terms <= GROUPED_TERMS and device.type == "cpu"


def native_product(
    in0: torch.Tensor,
    in1: torch.Tensor,
    fidelity: MathFidelity,
    bias: torch.Tensor | None,
    activation: Activation | None,
) -> torch.Tensor:
    """``activation(in0[M, K] @ in1[K, N] + bias[1, N])`` of bf16 tensors, rounded once to bf16; where ``is_native``."""
    in0, in1 = exact_operands(in0, in1, fidelity)
    if bias is None and activation is None:
        return torch.mm(in0, in1)
    name, algorithm = FUSED[activation]
    row = None if bias is None else bias[0]
    return torch.ops.mkldnn._linear_pointwise(in0, in1.mT, row, name, [], algorithm)


def product(
    in0: torch.Tensor,
    in1: torch.Tensor,
    config: WormholeComputeKernelConfig,
    grouped: bool,
) -> torch.Tensor:
    """``in0[M, K] @ in1[K, N]`` in fp32, with the configured fidelity and accumulation; the result is the caller's.

    ``grouped``: whether terms are rounded (``is_grouped`` of the whole product, of which this may be a tile).
    """
    in0, in1 = as_multiplied(in0), as_multiplied(in1)
    if not config.fp32_dest_acc_en:
        return _bf16_destination(in0, in1, config)
    if grouped:
        return grouped_product(in0[None].to(torch.float32), in1[None].to(torch.float32), config.math_fidelity)[0]
    left, right = exact_operands(in0, in1, config.math_fidelity)
    return torch.mm(left.to(torch.float32), right.to(torch.float32))


def grouped_product(in0: torch.Tensor, in1: torch.Tensor, fidelity: MathFidelity) -> torch.Tensor:
    """``in0[B, M, K] @ in1[B, K, N]`` of fp32 operands, as multiplied, the first phase's terms rounded in groups."""
    first, *others = multiplier_phases(in0, in1, fidelity)
    result = grouped_sums(*first)
    for pair in others:
        result.baddbmm_(*pair)
    return result


def exact_operands(in0: torch.Tensor, in1: torch.Tensor, fidelity: MathFidelity) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands whose exact product stands for the multipliers' where terms are not rounded.

    HiFi3 is taken for HiFi4: what it leaves out, products of low bits, is 1e-4, and would cost a second product.
    """
    fidelity = MathFidelity.HiFi4 if fidelity is MathFidelity.HiFi3 else fidelity
    (pair,) = multiplier_operands(in0, in1, fidelity)
    return pair


def is_native(in0: torch.Tensor, in1: torch.Tensor, bias: torch.Tensor | None, activation: Activation | None) -> bool:
    """Whether there are units for a product in bf16, and for what follows it before the one rounding."""
    if bias is None and activation is None:
        return multiplies_natively(in0, in1)
    one_row = bias is None or bias.shape[0] == 1
    return one_row and activation in FUSED and fuses_natively(in0, in1, *([] if bias is None else [bias]))


def multiplies_natively(*operands: torch.Tensor) -> bool:
    """Whether this CPU (or GPU) has units for them: all are bf16, and so the result."""
    return all(operand.dtype is torch.bfloat16 for operand in operands) and has_native_bf16(operands[0].device.type)


def fuses_natively(*operands: torch.Tensor) -> bool:
    """Whether oneDNN adds a bias before it rounds, too, which is known of it on x86 only."""
    return X86 and operands[0].device.type == "cpu" and multiplies_natively(*operands)


@functools.cache
def has_native_bf16(device_type: str) -> bool:
    if device_type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    # On x86 oneDNN answers yes for AVX-512 without such units too, where it converts.
    return torch.cpu._is_avx512_bf16_supported() if X86 else torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _bf16_destination(in0, in1, config) -> torch.Tensor:
    """A running sum in bf16, on the grid the accumulator has; slow, and only statistically the hardware's."""
    in0, in1 = in0.to(torch.float32), in1.to(torch.float32)
    terms = in0.shape[1]
    block = K_BLOCK if config.packer_l1_acc else terms
    total = None
    for start in range(0, terms, block):
        stop = min(start + block, terms)
        partial = torch.zeros(in0.shape[0], in1.shape[1], device=in0.device)
        for k in range(start, stop, K_STEP):
            chunk = slice(k, min(k + K_STEP, stop))
            for left, right in multiplier_phases(in0[:, chunk], in1[chunk], config.math_fidelity):
                addend = torch.mm(left, right)
                grid = torch.maximum(leading_power(addend).mul_(2), leading_power(partial)).mul_(2.0**-10)
                grid.clamp_(min=torch.finfo(torch.float32).tiny)
                partial.add_(addend.div_(grid).round_().mul_(grid))
                round_to_bf16_(partial)
        # The packer adds to L1 in bf16, rounding ties to even.
        total = partial if total is None else (total + partial).to(torch.bfloat16).to(torch.float32)
    return total
