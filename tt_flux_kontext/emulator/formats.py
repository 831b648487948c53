"""Number formats: how values are rounded when they are stored, and what multipliers and adders see of them.

Sources: the host rules are those of the TT-NN 0.81.1 library, reproduced bit for bit; the packer (which writes the
results of operations), the multipliers and the adders follow Tenstorrent's simulator of the Tensix core, bit for bit.
Differences kept on purpose: NaN stays NaN (the packer writes infinity) so that a mistake stays visible, and denormals
are not flushed.

Storage: bf16 torch tensors for BFLOAT16 and both block floats (whose values are exact in bf16), fp32 for FLOAT32,
int64 for UINT32.
"""

import torch

from .types import DataType, MathFidelity

BLOCK = 16
"""Consecutive values of the last dimension that share an exponent in the block floats."""

MAGNITUDE_BITS = {DataType.BFLOAT8_B: 7, DataType.BFLOAT4_B: 3}
CHUNK_ELEMENTS = 1 << 18
"""Elements worked on at a time where several passes are made, so that temporaries stay in the cache."""

# Masks are tensors, since torch takes as long as for a small tensor to make one of a number.
_EXPONENT = torch.tensor(0x7F800000, dtype=torch.int32)
_KEPT_BF16 = [torch.tensor(-1 << (8 - bits), dtype=torch.int16) for bits in range(9)]
_KEPT_FP32 = [torch.tensor(-1 << (24 - bits), dtype=torch.int32) for bits in range(25)]


def storage_dtype(dtype: DataType) -> torch.dtype:
    return {DataType.FLOAT32: torch.float32, DataType.UINT32: torch.int64}.get(dtype, torch.bfloat16)


def host_convert(values: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Values as the host library stores them: bf16 by round-to-nearest-even, block floats from fp32 directly."""
    if dtype.is_block_float:
        return _block_float(values, dtype, _align_on_host)
    return values.to(storage_dtype(dtype))


def pack(values: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Results as the packer stores them: bf16 by rounding ties away from zero. Overwrites ``values``."""
    if dtype.is_block_float:
        return _block_float(values, dtype, _align_in_packer)
    if dtype is DataType.BFLOAT16 and values.dtype is torch.float32:
        round_to_bf16_(values)
    return values.to(storage_dtype(dtype))


def round_to_bf16_(values: torch.Tensor) -> torch.Tensor:
    """Round fp32 values in place to the nearest bf16 value, ties away from zero."""
    values.view(torch.int32).add_(0x8000).bitwise_and_(-0x10000)
    return values


def leading_power(values: torch.Tensor) -> torch.Tensor:
    """The power of two of each fp32 value's leading bit (0 for zeros and denormals)."""
    return (values.view(torch.int32) & _EXPONENT).view(torch.float32)


def keep_significant_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """bf16 or fp32 values cut to ``bits`` significant bits, by truncation."""
    if values.dtype is torch.bfloat16:
        return (values.view(torch.int16) & _KEPT_BF16[bits]).view(torch.bfloat16)
    return (values.view(torch.int32) & _KEPT_FP32[bits]).view(torch.float32)


def as_multiplied(values: torch.Tensor) -> torch.Tensor:
    """What the matrix unit's source registers hold of bf16 or fp32 values: at most 11 significant bits (TF32)."""
    return keep_significant_bits(values, 11) if values.dtype is torch.float32 else values


def aligned_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The matrix unit's sum of fp32 tensors that broadcast.

    Both come through the source registers; the smaller is put on a grid 10 bits below the larger one's leading bit,
    ties away from zero, and added exactly.
    """
    a, b = as_multiplied(a), as_multiplied(b)
    # Next to an offset of 1.5 * 2^13 times the leading bit, an fp32 sum is a multiple of the grid. An operand a 2^12th
    # larger has no ties, and the larger one still goes back to where it was. (The limit lets infinities pass.)
    offset = torch.maximum(leading_power(a), leading_power(b)).clamp_(max=2.0**112).mul_(1.5 * 2**13)
    return torch.add(offset, a, alpha=1 + 2.0**-12).add_(b, alpha=1 + 2.0**-12).sub_(offset)


def multiplier_phases(in0: torch.Tensor, in1: torch.Tensor, fidelity: MathFidelity):
    """The pairs of partial operands that the multipliers take in turn, lazily; their products add up to the result.

    in0 (activations) is split after 7 significant bits, in1 (weights) after 5 and 10; fidelity says how many of the
    four pairs are taken.
    """
    in1 = _for_multiplier(in1)
    split0, split1 = keep_significant_bits(in0, 7), keep_significant_bits(in1, 5)
    yield split0, split1
    if fidelity is MathFidelity.LoFi:
        return
    yield split0, in1 - split1
    if fidelity is MathFidelity.HiFi2:
        return
    yield in0 - split0, split1
    if fidelity is MathFidelity.HiFi4:
        yield in0 - split0, in1 - split1


def multiplier_operands(in0: torch.Tensor, in1: torch.Tensor, fidelity: MathFidelity) -> list:
    """The fewest pairs of operands whose exact products add up to what ``multiplier_phases`` yields."""
    in1 = _for_multiplier(in1)
    if fidelity is MathFidelity.HiFi4:
        return [(in0, in1)]
    high0 = keep_significant_bits(in0, 7)
    if fidelity is MathFidelity.HiFi2:
        return [(high0, in1)]
    high1 = keep_significant_bits(in1, 5)
    if fidelity is MathFidelity.LoFi:
        return [(high0, high1)]
    return [(high0, in1), (in0 - high0, high1)]


def _for_multiplier(in1: torch.Tensor) -> torch.Tensor:
    """The last of TF32's bits is in neither half of in1."""
    return keep_significant_bits(in1, 10) if in1.dtype is torch.float32 else in1


def _block_float(values: torch.Tensor, dtype: DataType, align) -> torch.Tensor:
    """Values on the grid of a block float, as bf16. ``align`` turns fp32 bits into (magnitudes, shared exponents)."""
    width = values.shape[-1]
    rows = torch.nn.functional.pad(values.reshape(-1, width), (0, -width % BLOCK))
    result = torch.empty(rows.shape, dtype=torch.bfloat16, device=values.device)
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        blocks = rows[start : start + step].to(torch.float32).reshape(-1, BLOCK)
        bits = blocks.view(torch.int32)
        magnitude, shared = align(bits, MAGNITUDE_BITS[dtype])
        decoded = _decode(magnitude, shared, MAGNITUDE_BITS[dtype])
        signed = torch.where(bits < 0, -decoded, decoded).add_(0.0)  # adding zero makes a negative zero positive
        result[start : start + step].copy_(signed.view(-1, rows.shape[1]))
    return result[:, :width].reshape(values.shape)


def _split(bits: torch.Tensor):
    """Exponent fields, 24-bit mantissas (0 for denormals), and the largest exponent of each block."""
    exponent = (bits >> 23) & 0xFF
    mantissa = ((bits & 0x7FFFFF) | 0x800000) * (exponent > 0)
    return exponent, mantissa, exponent.amax(-1, keepdim=True)


def _align_on_host(bits: torch.Tensor, kept: int):
    exponent, mantissa, shared = _split(bits)
    aligned = mantissa >> (shared - exponent).clamp_(max=31)  # the bits shifted out leave no trace
    drop = 24 - kept
    to_even = (aligned >> drop) & 1
    return ((aligned + (1 << (drop - 1)) - 1 + to_even) >> drop).clamp_(max=(1 << kept) - 1), shared


def _align_in_packer(bits: torch.Tensor, kept: int):
    seven = (bits & -0x10000) + 0x10000 & -0x20000  # cut to bf16, then ties away to 7 significant bits
    exponent, mantissa, shared = _split(seven)
    shift = (shared - exponent).clamp_(max=10)  # beyond 8 nothing is left, and 10 does not overflow
    magnitude = ((mantissa + (0x10000 << shift)) >> (shift + 17)).clamp_(max=127)
    return magnitude >> (7 - kept), shared


def _decode(magnitude: torch.Tensor, shared: torch.Tensor, kept: int) -> torch.Tensor:
    # Exponent 255 is a number like the others (2 to the 128 and up), as long as the value is below infinity.
    scale = ((shared - (shared == 255).int()) << 23).view(torch.float32)
    value = magnitude.to(torch.float32).mul_(2.0 ** (1 - kept)).mul_(scale)
    if not (shared == 255).any():
        return value
    top = 1 << (kept - 1)
    return torch.where(shared == 255, value.mul(2).masked_fill_(magnitude > top, float("nan")), value)
