"""Matrix products with the multipliers' and the accumulators' precision, by the fastest route torch has.

Products are in fp32, to which bf16 operands are converted tile by tile: torch's bf16 product is two orders of magnitude
slower on a CPU without units for it. On one with them it is quicker than fp32, but torch gives its result in bf16; it
is taken where that is all that is asked for, the bias included: then it rounds once, like the packer (ties to even).
"""

import functools
from collections.abc import Callable

import torch

from .checks import check
from .formats import keep_significant_bits, leading_power, multiplier_operands, multiplier_phases, pack, round_to_bf16_
from .types import DataType, MathFidelity, WormholeComputeKernelConfig

ACCURATE = WormholeComputeKernelConfig(math_fidelity=MathFidelity.HiFi4, fp32_dest_acc_en=True)
"""The configuration of operations called without one."""

ROWS, COLUMNS = 1024, 1024
"""Output tile of a product: large enough that converting operands costs little, small enough for the cache."""

K_STEP = 16
"""Terms that a bf16 destination adds up before it rounds."""
K_BLOCK = 128
"""Terms a core sums before the packer adds them to the partial result in L1 (four tiles, a common ``in0_block_w``)."""

Finish = Callable[[torch.Tensor, slice, slice], torch.Tensor]
"""``finish(tile, rows, columns)``: what follows product and bias, on an fp32 tile; returns the tile."""


def gemm(
    in0: torch.Tensor,
    in1: torch.Tensor,
    config: WormholeComputeKernelConfig,
    dtype: DataType,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    finish: Finish | None = None,
) -> None:
    """``out[M, N] = finish(in0[M, K] @ in1[K, N] + bias[1 or M, N])``, packed as ``dtype``.

    Operands are bf16 or fp32, of any strides.
    """
    check(config.math_fidelity is not MathFidelity.Invalid, "matmul", "the compute kernel config has no math fidelity")
    for row in range(0, out.shape[0], ROWS):
        rows = slice(row, min(row + ROWS, out.shape[0]))
        left = in0[rows]
        for column in range(0, out.shape[1], COLUMNS):
            columns = slice(column, min(column + COLUMNS, out.shape[1]))
            offset = None if bias is None else bias[rows if bias.shape[0] > 1 else slice(0, 1), columns]
            if dtype is DataType.BFLOAT16 and finish is None:
                out[rows, columns] = bf16_product(left, in1[:, columns], config, offset)
                continue
            tile = product(left, in1[:, columns], config)
            if offset is not None:
                tile += offset
            if finish is not None:
                tile = finish(tile, rows, columns)
            out[rows, columns] = pack(tile, dtype)


def bf16_product(
    in0: torch.Tensor,
    in1: torch.Tensor,
    config: WormholeComputeKernelConfig,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``in0[M, K] @ in1[K, N] + bias[1 or M, N]``, rounded once to bf16."""
    if config.fp32_dest_acc_en and multiplies_natively(in0, in1, bias):
        pair, *rest = multiplier_operands(in0, in1, config.math_fidelity)
        if not rest:
            return torch.mm(*pair) if bias is None else torch.addmm(bias, *pair)
    tile = product(in0, in1, config)
    if bias is not None:
        tile += bias
    return pack(tile, DataType.BFLOAT16)


def product(in0: torch.Tensor, in1: torch.Tensor, config: WormholeComputeKernelConfig) -> torch.Tensor:
    """``in0[M, K] @ in1[K, N]`` in fp32, with the configured fidelity and accumulation; the result is the caller's."""
    in0, in1 = as_multiplied(in0), as_multiplied(in1)
    if not config.fp32_dest_acc_en:
        return _bf16_destination(in0, in1, config)
    first, *rest = (
        (left.to(torch.float32), right.to(torch.float32))
        for left, right in multiplier_operands(in0, in1, config.math_fidelity)
    )
    result = torch.mm(*first)
    for pair in rest:
        result.addmm_(*pair)
    return result


def multiplies_natively(*operands: torch.Tensor | None) -> bool:
    """Whether this CPU (or GPU) has units for them: all are bf16, and so the result."""
    given = [operand for operand in operands if operand is not None]
    return all(operand.dtype is torch.bfloat16 for operand in given) and has_native_bf16(given[0].device.type)


@functools.cache
def has_native_bf16(device_type: str) -> bool:
    return device_type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def as_multiplied(operand: torch.Tensor) -> torch.Tensor:
    """fp32 operands reach the multipliers with 10 mantissa bits (TF32)."""
    return keep_significant_bits(operand, 11) if operand.dtype is torch.float32 else operand


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
