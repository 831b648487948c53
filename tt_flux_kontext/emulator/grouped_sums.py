"""Sums of products as the matrix unit forms them: of every 8 terms each is rounded to one grid.

The grid lies 10 bits below the largest exponent in a group, ties go away from zero, and sums of groups are fp32. An
exponent is that of two leading bits' product, before the mantissas' product carries into it. It is compiled as a loop:
made of whole-tensor operations it takes five times as long.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch

from .formats import leading_power

GROUP = 8
"""Terms that are rounded to one grid."""

GRID = 1.5 * 2**13
"""Next to an offset of so many times a group's largest power, an fp32 sum is a multiple of the grid."""
NO_TIES = 1 + 2.0**-13
"""Terms so much larger are no ties, and none of them reaches the next multiple."""
_SMALLEST = np.float32(2.0**-63)
"""Smaller values count as this much, so that products of powers are not denormal."""
THREADED_TERMS = 1 << 24
"""Terms of the smallest product that several threads share: some milliseconds of one."""
_COLUMNS = 512
"""Columns worked on at a time: 8 rows of them, and of their powers, stay in a core's first cache."""


def grouped_sums(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left[B, M, K] @ right[B, K, N]`` in fp32, of fp32 operands on the CPU that the multipliers take whole."""
    if left.shape[1] > right.shape[2]:  # the longer side goes inside
        return grouped_sums(right.mT, left.mT).mT
    missing = -left.shape[2] % GROUP
    if missing:
        left, right = torch.nn.functional.pad(left, (0, missing)), torch.nn.functional.pad(right, (0, 0, 0, missing))
    left, right = left.contiguous(), right.contiguous()
    powers = leading_power(left).clamp_(min=_SMALLEST).mul_(GRID)
    out = left.new_zeros(*left.shape[:2], right.shape[2])
    arrays = [tensor.numpy() for tensor in (left * NO_TIES, powers, right, right.view(torch.int32), out)]
    columns = right.shape[2]
    threads = torch.get_num_threads() if left.numel() * columns >= THREADED_TERMS else 1
    width = columns if len(left) >= threads else -(-columns // threads)
    # An element is summed by one thread: how many there are changes no bit.
    parts = [
        (*batch, start, min(start + width, columns)) for batch in zip(*arrays) for start in range(0, columns, width)
    ]
    if threads == 1:
        for part in parts:
            _add_products(*part)
    else:
        list(_threads(threads).map(_add_products, *zip(*parts)))
    return out


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def _compiled(function):
    """On its first call, which takes a second; and kept for the next process, where there is a folder to keep it in."""
    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba's, where none can be written
        return numba.njit(**options)(function)


@_compiled
def _add_products(left, left_powers, right, right_bits, out, start, stop):
    """Adds ``left[M, K] @ right[K, N]`` to ``out``, in columns from ``start`` to ``stop``.

    The inner loop becomes vector instructions.
    """
    terms = len(right)
    powers = np.empty((8, _COLUMNS), np.float32)
    bits = powers.view(np.int32)
    for column in range(start, stop, _COLUMNS):
        some = slice(column, min(column + _COLUMNS, stop))
        for k in range(0, terms, 8):
            for j in range(8):
                for n in range(some.stop - column):
                    bits[j, n] = right_bits[k + j, column + n] & np.int32(0x7F800000)
                    powers[j, n] = max(powers[j, n], _SMALLEST)
            q0, q1, q2, q3, q4, q5, q6, q7 = (
                powers[0], powers[1], powers[2], powers[3], powers[4], powers[5], powers[6], powers[7]
            )  # fmt: skip
            b0, b1, b2, b3 = right[k, some], right[k + 1, some], right[k + 2, some], right[k + 3, some]
            b4, b5, b6, b7 = right[k + 4, some], right[k + 5, some], right[k + 6, some], right[k + 7, some]
            for row in range(len(left)):
                a, p, sums = left[row, k : k + 8], left_powers[row, k : k + 8], out[row, some]
                a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
                p0, p1, p2, p3, p4, p5, p6, p7 = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
                for n in range(len(sums)):
                    offset = max(
                        max(max(p0 * q0[n], p1 * q1[n]), max(p2 * q2[n], p3 * q3[n])),
                        max(max(p4 * q4[n], p5 * q5[n]), max(p6 * q6[n], p7 * q7[n])),
                    )
                    total = offset + a0 * b0[n]
                    total += a1 * b1[n]
                    total += a2 * b2[n]
                    total += a3 * b3[n]
                    total += a4 * b4[n]
                    total += a5 * b5[n]
                    total += a6 * b6[n]
                    total += a7 * b7[n]
                    sums[n] += total - offset
