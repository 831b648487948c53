"""Matrix products with the multipliers' and the accumulators' precision.

The first of a fidelity's phases, the product of the operands' high bits, is not summed exactly: of every 8 terms along
K each is rounded to a grid 10 bits below the largest one's exponent, ties away from zero. That is 3e-4 of an fp32
result; rounded to bf16, one element in ten comes out next to the exact sum's. Following it costs some ten times the
product, so that only products up to ``GROUPED_TERMS`` do, which agree with the kernels to 2e-4. Larger ones differ
from them by 1e-3, and from the truth by as much as the kernels. The other phases round likewise, 32 times as finely
and more, which is left out; sums of groups are fp32.

Products are in fp32, to which bf16 operands are converted tile by tile: torch's bf16 product is two orders of magnitude
slower on a CPU without units for it. On one with them it is quicker than fp32, but torch gives its result in bf16; it
is taken where that is all that is asked for: a large product that nothing is added to.
"""

import functools
import itertools
from collections.abc import Callable

import torch

from .checks import check
from .formats import (
    aligned_sum,
    as_multiplied,
    leading_power,
    multiplier_operands,
    multiplier_phases,
    pack,
    round_to_bf16_,
)
from .types import DataType, MathFidelity, WormholeComputeKernelConfig

ACCURATE = WormholeComputeKernelConfig(math_fidelity=MathFidelity.HiFi4, fp32_dest_acc_en=True)
"""The configuration of operations called without one."""

ROWS, COLUMNS = 1024, 1024
"""Output tile of a product: large enough that converting operands costs little, small enough for the cache."""

GROUP = 8
"""Terms that are rounded to one grid."""
GROUPED_TERMS = 1 << 24
"""Terms (M * K * N) of the largest product whose terms are rounded."""
GROUPED_ELEMENTS = 1 << 16
"""Elements of output, of several groups if they are few, that it works on at a time: they stay in the cache."""

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

    Operands are bf16 or fp32, of any strides. The matrix unit adds the bias, to the product in L1.
    """
    check(config.math_fidelity is not MathFidelity.Invalid, "matmul", "the compute kernel config has no math fidelity")
    grouped = is_grouped(in0, in1)
    for row in range(0, out.shape[0], ROWS):
        rows = slice(row, min(row + ROWS, out.shape[0]))
        left = in0[rows]
        for column in range(0, out.shape[1], COLUMNS):
            columns = slice(column, min(column + COLUMNS, out.shape[1]))
            if dtype is DataType.BFLOAT16 and bias is None and finish is None:
                out[rows, columns] = bf16_product(left, in1[:, columns], config, grouped)
                continue
            tile = product(left, in1[:, columns], config, grouped)
            if bias is not None:
                tile = add_bias(tile, bias[rows if bias.shape[0] > 1 else slice(0, 1), columns])
            if finish is not None:
                tile = finish(tile, rows, columns)
            out[rows, columns] = pack(tile, dtype)


def add_bias(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return aligned_sum(product, bias.to(torch.float32))


def is_grouped(in0: torch.Tensor, in1: torch.Tensor) -> bool:
    """Whether a product is small enough for its terms to be rounded."""
    return in0.numel() * in1.shape[1] <= GROUPED_TERMS


def bf16_product(
    in0: torch.Tensor,
    in1: torch.Tensor,
    config: WormholeComputeKernelConfig,
    grouped: bool | None = None,
) -> torch.Tensor:
    """``in0[M, K] @ in1[K, N]``, rounded once to bf16; see ``product``."""
    grouped = is_grouped(in0, in1) if grouped is None else grouped
    if config.fp32_dest_acc_en and not grouped and multiplies_natively(in0, in1):
        pair, *rest = multiplier_operands(in0, in1, config.math_fidelity)
        if not rest:
            return torch.mm(*pair)
    return pack(product(in0, in1, config, grouped), DataType.BFLOAT16)


def product(
    in0: torch.Tensor,
    in1: torch.Tensor,
    config: WormholeComputeKernelConfig,
    grouped: bool | None = None,
) -> torch.Tensor:
    """``in0[M, K] @ in1[K, N]`` in fp32, with the configured fidelity and accumulation; the result is the caller's.

    ``grouped``: whether terms are rounded; a tile of a product is told what its product is.
    """
    grouped = is_grouped(in0, in1) if grouped is None else grouped
    in0, in1 = as_multiplied(in0), as_multiplied(in1)
    if not config.fp32_dest_acc_en:
        return _bf16_destination(in0, in1, config)
    if grouped:
        return _grouped_product(in0.to(torch.float32), in1.to(torch.float32), config.math_fidelity)
    first, *rest = (
        (left.to(torch.float32), right.to(torch.float32))
        for left, right in multiplier_operands(in0, in1, config.math_fidelity)
    )
    result = torch.mm(*first)
    for pair in rest:
        result.addmm_(*pair)
    return result


def multiplies_natively(*operands: torch.Tensor) -> bool:
    """Whether this CPU (or GPU) has units for them: all are bf16, and so the result."""
    return all(operand.dtype is torch.bfloat16 for operand in operands) and has_native_bf16(operands[0].device.type)


@functools.cache
def has_native_bf16(device_type: str) -> bool:
    return device_type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _grouped_product(in0, in1, fidelity) -> torch.Tensor:
    """Of fp32 operands with at most 11 significant bits, the first phase's terms rounded in groups."""
    # In every row and column the largest leading bit becomes 1, for fourth powers to stay in range.
    scale0 = leading_power(in0).amax(1, keepdim=True).clamp_(min=2.0**-126)
    scale1 = leading_power(in1).amax(0, keepdim=True).clamp_(min=2.0**-126)
    in0, in1 = in0 / scale0, in1 / scale1
    (high0, high1), *others = multiplier_phases(in0, in1, fidelity)
    # (What is less than 2^-15 of the largest counts as that: denormal products of the powers would be slow.)
    fourths0, fourths1 = (leading_power(x).clamp_(min=2.0**-15).square_().square_() for x in (in0, in1))
    rows, columns = (high0, fourths0), (high1.mT, fourths1.mT)
    wide = in0.shape[0] <= in1.shape[1]  # the longer side goes inside
    result = _grouped_sum(*rows, *columns) if wide else _grouped_sum(*columns, *rows).mT
    for pair in others:
        result.addmm_(*pair)
    return result.mul_(scale0).mul_(scale1)


def _grouped_sum(left, left_fourths, right, right_fourths) -> torch.Tensor:
    """``left[M, K] @ right[N, K].T``, terms rounded; ``fourths``: fourth powers of the whole operands' leading bits.

    Next to an offset of 1.1 to 1.9 times 2^13 times the largest product of leading bits in a group, an fp32 sum is a
    multiple of the grid. A quarter of the logarithm of 2.8 times the sum of their fourth powers falls into that range.
    """
    left = left * (1 + 2.0**-13)  # so much larger, products have no ties
    lefts, rights = _in_groups(left).permute(2, 0, 1).unsqueeze(-1), _in_groups(right).permute(2, 0, 1).unsqueeze(-2)
    left_fourths, right_fourths = _in_groups(left_fourths).mul_(2.8), _in_groups(right_fourths).mT
    result = torch.zeros(len(left), len(right), device=left.device)
    width = min(len(right), COLUMNS)
    height = min(len(left), GROUPED_ELEMENTS // width)
    step = GROUPED_ELEMENTS // (width * height)
    for row, column in itertools.product(range(0, len(left), height), range(0, len(right), width)):
        rows, columns = slice(row, row + height), slice(column, column + width)
        total = result[rows, columns]
        for start in range(0, lefts.shape[1], step):
            groups = slice(start, start + step)
            offset = torch.bmm(left_fourths[groups, rows], right_fourths[groups, :, columns])
            # A quarter of the bits as an integer is a quarter of the logarithm plus 3/4 of the exponent's bias, 127.
            offset.view(torch.int32).bitwise_right_shift_(2)
            offset.mul_(2.0 ** (127 - 32 + 13))
            first, *others = zip(lefts[:, groups, rows], rights[:, groups, :, columns])
            partial = torch.addcmul(offset, *first)
            for pair in others:
                partial.addcmul_(*pair)
            for rounded in partial.sub_(offset):
                total.add_(rounded)
    return result


def _in_groups(values: torch.Tensor) -> torch.Tensor:
    """``[R, K]`` as ``[K / 8, R, 8]``, its memory in the order ``[8, K / 8, R]``."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % GROUP))
    return padded.view(len(values), -1, GROUP).permute(2, 1, 0).contiguous().permute(1, 2, 0)


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
