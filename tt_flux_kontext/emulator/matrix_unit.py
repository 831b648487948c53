"""Steps of kernels on the matrix unit: products element by element, and sums of a row's or a column's terms.

Operands come through the source registers, cut to 11 significant bits (TF32). Of operand 0 the multipliers take 5 bits
at a time, of operand 1 seven and the four that are left, as many of the four pairs as the fidelity says; results are
fp32. Sums are products with a scaler: in the first phase each of 8 terms is rounded to a grid 10 bits below the
exponent of the largest product, ties away from zero. Small positive terms gain by it more often than they lose, which
adds up; the other phases' grids are 32 times as fine and more, and left out.

Source: Tenstorrent's simulator of the Tensix core, with which products agree exactly and sums to 2e-5.
"""

import torch

from .formats import as_multiplied, keep_significant_bits, leading_power, multiplier_operands
from .grouped_sums import GRID, GROUP, NO_TIES
from .types import MathFidelity


def multiply(a: torch.Tensor, b: torch.Tensor, fidelity: MathFidelity) -> torch.Tensor:
    """``a * b`` of fp32 tensors; b broadcasts to a."""
    (left, right), *rest = multiplier_operands(as_multiplied(b), a, fidelity)
    result = right.mul_(left)
    for left, right in rest:
        result.addcmul_(left, right)
    return result


def row_sums(terms: torch.Tensor, fidelity: MathFidelity, rounded: bool = True) -> torch.Tensor:
    """``terms[..., W]`` summed to ``[..., 1]``: data in operand 1, a scaler of one in operand 0.

    Where signs are mixed, rounding averages out, and need not be followed (``rounded``).
    """
    upper, whole = keep_significant_bits(terms, 7), fidelity in (MathFidelity.HiFi3, MathFidelity.HiFi4)
    terms = as_multiplied(terms) if whole else upper
    if not rounded:
        return terms.sum(-1, keepdim=True)
    width = terms.shape[-1]
    powers = torch.nn.functional.pad(leading_power(upper), (0, -width % GROUP))
    largest = torch.nn.functional.max_pool1d(powers.view(1, -1, powers.shape[-1]), GROUP)
    offset = largest.mul_(GRID).repeat_interleave(GROUP, -1)[..., :width].view_as(upper)
    total = torch.add(offset, upper, alpha=NO_TIES).sub_(offset)
    if whole:
        total.add_(terms.sub_(upper))
    return total.sum(-1, keepdim=True)


def column_sums(
    terms: torch.Tensor, scaler: torch.Tensor, fidelity: MathFidelity, rounded: bool = True
) -> torch.Tensor:
    """``terms[..., K, N]`` times a scaler, summed to ``[..., N]``: data in operand 0; K in groups."""
    terms = keep_significant_bits(terms, 10)
    upper, scaler_upper = keep_significant_bits(terms, 5), keep_significant_bits(scaler, 7)
    if rounded:
        groups, powers = (values.unflatten(-2, (-1, GROUP)) for values in (upper, leading_power(upper)))
        offset = powers.amax(-2, keepdim=True).mul_(GRID * leading_power(scaler))
        total = torch.add(offset, groups, alpha=NO_TIES * scaler_upper.item()).sub_(offset).sum((-3, -2))
    else:
        total = upper.sum(-2) * scaler_upper
    if fidelity is MathFidelity.LoFi:
        return total
    lower = terms.sub_(upper).sum(-2)
    total.addcmul_(lower, scaler_upper)
    if fidelity is MathFidelity.HiFi2:
        return total
    scaler_lower = scaler - scaler_upper
    total.addcmul_(upper.sum(-2), scaler_lower)
    return total if fidelity is MathFidelity.HiFi3 else total.addcmul_(lower, scaler_lower)
