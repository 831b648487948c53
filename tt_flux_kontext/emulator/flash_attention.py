"""What the attention kernels compute: softmax over chunks of keys, with running maxima, sums and results.

Sources: TT-NN 0.81.1's kernels ``sdpa.cpp``, ``joint_sdpa.cpp``, ``compute_common.hpp`` and the vector unit's
``ckernel_sfpu_exp.h`` for Wormhole. Where terms of products are rounded (small calls, see ``gemm``), 98 of 100 values
agree with theirs to the bit; with exact sums one in four is a bf16 step away.

Formats: results, maxima and corrections of all kernels are bf16. Scores, probabilities and row sums are fp32 in plain
attention with an fp32 destination, of which the matrix unit reads 11 significant bits (TF32); bf16 elsewhere.
"""

import dataclasses
import math
from typing import NamedTuple

import torch

from .formats import aligned_sum, keep_significant_bits, leading_power, pack, round_to_bf16_
from .gemm import grouped_product, product
from .matrix_unit import multiply
from .types import TILE_SIZE, DataType, MathFidelity, WormholeComputeKernelConfig

GROUPED_TERMS = 1 << 30
"""Terms (H * Sq * Sk * D) of the largest call whose products are rounded in groups: more than elsewhere (``gemm``), for
exact sums come out half of the kernels' error away."""
BLOCK_ELEMENTS = 1 << 17
"""Scores worked on at a time: what stays in a core's cache."""

TF32_BITS = 11
_TINY = torch.finfo(torch.float32).tiny
"""Below this values are denormal: zero on the chip, and a hundred times slower on a CPU."""


KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a sequence, ``[H, Sk, D]``."""


class Method(NamedTuple):
    """How a kernel goes about it.

    ``keys``: how many at a time; ``wide``: scores, probabilities and sums are fp32; ``grouped``: terms of products are
    rounded as on the chip.
    """

    keys: int
    scale: float
    wide: bool
    exact_exponential: bool
    config: WormholeComputeKernelConfig
    grouped: bool = False

    @property
    def bf16_scale(self) -> float:
        """The scale where it is applied to maxima: cut to bf16."""
        return keep_significant_bits(torch.tensor(self.scale), 8).item()

    @property
    def activation_bits(self) -> int:
        """Significant bits that the multipliers take of in0: of queries, probabilities and sums."""
        return 7 if self.config.math_fidelity in (MathFidelity.LoFi, MathFidelity.HiFi2) else TF32_BITS

    @property
    def weight_bits(self) -> int:
        """Of in1: of keys and values. HiFi3 loses the products of low bits only; exact sums leave them in."""
        return 5 if self.config.math_fidelity is MathFidelity.LoFi else 10


class Running(NamedTuple):
    """What passes from chunk to chunk, of ``[heads, rows]``: ``maximum[..., 1]``, ``sums[..., 32]`` of the keys in each
    column of the tiles, ``result[..., D]``, not yet divided."""

    maximum: torch.Tensor
    sums: torch.Tensor
    result: torch.Tensor


def attend(
    q: torch.Tensor,
    sequences: list[KeysValues],
    method: Method,
    out: torch.Tensor,
    dtype: DataType,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> None:
    """``out[H, Sq, D] = softmax(q @ k^T * scale + mask) @ v``, packed as ``dtype``.

    ``sequences``: k and v ``[H, Sk, D]`` of each sequence of keys; chunks do not reach across them. ``mask``
    ``[H, Sq, Sk]`` is for a single sequence.
    """
    method = method._replace(grouped=is_grouped(q, sum(keys.shape[1] for keys, _ in sequences)))
    for heads, rows, queries, chunks in blocks(q, sequences, method):
        part = None if mask is None else mask[heads, rows]
        running = over_chunks(queries, chunks, method, part, rows.start if is_causal else None)
        out[heads, rows] = pack(divide(running.result, total(running, method), method), dtype)


def is_grouped(q: torch.Tensor, keys: int) -> bool:
    """Whether attention of ``q[H, Sq, D]`` to so many keys has the terms of its products rounded in groups."""
    return q.numel() * keys <= GROUPED_TERMS and q.device.type == "cpu"


def blocks(q: torch.Tensor, sequences: list[KeysValues], method: Method):
    """What is worked on at a time: slices of heads and rows, their queries, and k and v by chunks, as multiplied."""
    heads, length, width = q.shape
    rows = min(length, max(TILE_SIZE, BLOCK_ELEMENTS // max(method.keys, width)))
    longest = max(min(method.keys, keys.shape[1]) for keys, _ in sequences)
    group = max(1, BLOCK_ELEMENTS // (rows * max(longest, width)))
    for head in range(0, heads, group):
        some = slice(head, head + group)
        queries = _cut_(_fp32(q[some]), method.activation_bits)
        chunks = [
            (_cut_(_fp32(k), method.weight_bits), _cut_(_fp32(v), method.weight_bits))
            for keys, values in sequences
            for k, v in zip(keys[some].split(method.keys, 1), values[some].split(method.keys, 1))
        ]
        for row in range(0, length, rows):
            block = slice(row, row + rows)
            yield some, block, queries[:, block], chunks


def over_chunks(queries, chunks, method, mask=None, first_row=None) -> Running:
    """The running values of queries over all chunks; ``first_row``: where the queries begin, if attention is causal."""
    running = None
    for index, (k, v) in enumerate(chunks):
        start = index * method.keys
        if first_row is not None and start >= first_row + queries.shape[1]:
            break
        scores = _product(queries, k.mT, method)
        if mask is not None:
            masked = mask[:, :, start : start + method.keys].to(torch.float32)
            scores = aligned_sum(_store_(scores, method), masked)
        if first_row is not None and start + method.keys > first_row:
            future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu_(first_row - start + 1)
            scores.masked_fill_(future, -math.inf)
        running = _take_in(scores, v, running, method)
    return running


def _take_in(scores, v, before, method) -> Running:
    """The running values with one more chunk, of ``scores[heads, rows, keys]`` and v. Overwrites ``scores``."""
    # All that follows reads the stored scores through the matrix unit.
    scores = _cut_(scores, TF32_BITS) if method.wide else round_to_bf16_(scores)
    # Finding the maximum transposes tiles in bf16, by truncation.
    maximum = keep_significant_bits(scores.amax(-1, keepdim=True), 8)
    if before is not None:
        maximum = torch.maximum(maximum, before.maximum)
    probabilities = _exponential_(_subtract_(scores, maximum), method)
    sums = _column_sums(probabilities, method)
    result = round_to_bf16_(_product(_cut_(probabilities, method.activation_bits), v, method))
    if before is None:
        return Running(maximum, sums, result)
    fidelity = method.config.math_fidelity
    # The exponential is never the fast one here.
    factor = round_to_bf16_(aligned_sum(before.maximum, -maximum).mul_(method.bf16_scale).exp_())
    earlier = _store_(multiply(before.sums, factor, fidelity), method)
    sums = _store_(aligned_sum(sums, earlier), method)
    # The packer adds to L1 in bf16, rounding ties to even.
    result = result.add_(round_to_bf16_(multiply(before.result, factor, fidelity))).bfloat16().float()
    return Running(maximum, sums, result)


def total(running, method) -> torch.Tensor:
    """The sums of all columns, ``[heads, rows, 1]``."""
    sums = _cut_(running.sums, method.activation_bits)
    return _store_(_product(sums, sums.new_ones(len(sums), TILE_SIZE, 1), method), method)


def divide(result, total, method) -> torch.Tensor:
    """The final result in fp32, not yet packed."""
    inverse = _store_(keep_significant_bits(total, TF32_BITS).reciprocal_(), method)
    return multiply(result, inverse, method.config.math_fidelity)


def _subtract_(scores, maximum):
    """``scores - maximum`` as the matrix unit does it: scores are put on a grid 10 bits below the maximum's leading
    bit, ties away from zero. (A larger score is on a coarser grid already.)"""
    grid = leading_power(maximum).mul_(2.0**-10)
    # Near `shift` fp32 has that grid. A factor a little above 1 takes ties away from zero, and nothing else anywhere.
    shift = grid.mul_(1.5 * 2.0**23)
    torch.add(shift, scores, alpha=1 + 2.0**-20, out=scores)
    return scores.sub_(shift.add_(maximum))


def _exponential_(scores, method):
    """``exp(scores * scale)`` with scores up to 0, stored.

    The accurate one is an fp32 polynomial, exact for our purposes. The fast one is Schraudolph's: the number's bits by
    a linear map, to 16 bits with 8 of the mantissa; negative numbers, from far below, are cut to 0 by the packer.
    """
    if not method.config.fp32_dest_acc_en:
        round_to_bf16_(scores)
    if method.exact_exponential:
        scores.mul_(method.scale).exp_()
    else:
        slope = torch.tensor(256 / math.log(2)) * method.scale
        scores.mul_(slope.item()).add_(32500.818359375).clamp_(min=0).add_(1.5 * 2.0**23)
        scores.view(torch.int32).bitwise_left_shift_(15)
        if not method.config.fp32_dest_acc_en:
            _cut_(scores, 8)
    return torch.threshold_(_store_(scores, method), _TINY, 0.0)


def _column_sums(probabilities, method):
    """``[..., keys]`` to ``[..., 32]``: the packer adds tile to tile in L1, in the format of the sums."""
    missing = -probabilities.shape[-1] % TILE_SIZE
    if missing:
        probabilities = torch.nn.functional.pad(probabilities, (0, missing))
    tiles = probabilities.unflatten(-1, (-1, TILE_SIZE))
    if method.wide:
        return tiles.sum(-2)
    first, *others = tiles.unbind(-2)
    sums = first.bfloat16()
    for tile in others:
        sums += tile
    return sums.float()


def _product(in0, in1, method) -> torch.Tensor:
    if not method.config.fp32_dest_acc_en:
        config = dataclasses.replace(method.config, packer_l1_acc=False)  # a chunk's products stay in the destination
        return torch.stack([product(left, right, config, grouped=False) for left, right in zip(in0, in1)])
    if method.grouped:
        return grouped_product(in0, in1, method.config.math_fidelity)
    return torch.bmm(in0, in1)


def _store_(values, method):
    return values if method.wide else round_to_bf16_(values)


def _fp32(values):
    return values.to(torch.float32, copy=True)


def _cut_(values, bits):
    """fp32 values cut in place to ``bits`` significant bits."""
    values.view(torch.int32).bitwise_and_(-(1 << (24 - bits)))
    return values
