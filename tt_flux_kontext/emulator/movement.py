"""Operations that only move values: slice, concat, permute, reshape, pad, upsample and embedding."""

import builtins  # this module has a slice of its own
import math

import torch

from .checks import check, check_dtype, check_operands, check_rank, describe
from .formats import pack
from .mesh import per_chip
from .tensor import Tensor, device_tensor, padded_shape
from .types import TILE_SIZE, DataType, Layout, MemoryConfig, Shape


@per_chip
def slice(
    input_tensor: Tensor,
    slice_start,
    slice_end,
    slice_step=None,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """``x[start:end:step]`` in every dimension; negative bounds count from the end.

    The whole tensor is returned as a view. A block-float tensor cut inside a tile becomes bf16.
    Raises RuntimeError for bounds of the wrong rank, out of range or out of order.
    """
    op, sizes = "slice", input_tensor.shape
    check_operands(op, input_tensor=input_tensor)
    steps = list(slice_step or [1] * len(sizes))
    ranks = (len(slice_start), len(slice_end), len(steps))
    check(
        set(ranks) == {len(sizes)}, op, f"bounds must have rank {len(sizes)}, got {ranks} for {describe(input_tensor)}"
    )
    starts = [start + size if start < 0 else start for start, size in zip(slice_start, sizes)]
    ends = [end + size if end < 0 else end for end, size in zip(slice_end, sizes)]
    for start, end, step, size in zip(starts, ends, steps, sizes):
        check(step > 0, op, f"steps must be positive, got {steps}")
        check(0 <= start <= end <= size, op, f"bounds {starts} to {ends} do not fit {describe(input_tensor)}")
    values = input_tensor.values[tuple(map(builtins.slice, starts, ends, steps))]
    if values.shape == input_tensor.shape:
        return input_tensor.view(input_tensor.shape)
    whole_tiles = all(start % TILE_SIZE == 0 for start in starts[-2:]) and set(steps[-2:]) <= {1}
    dtype = DataType.BFLOAT16 if input_tensor.dtype.is_block_float and not whole_tiles else input_tensor.dtype
    return device_tensor(values, input_tensor, dtype=dtype, memory_config=memory_config or input_tensor.memory_config())


@per_chip
def concat(tensors, dim: int = 0, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """The tensors one after the other along ``dim``. Block floats joined inside a tile become bf16.

    Raises RuntimeError for an empty list, and for dtypes, layouts or other dimensions that differ.
    """
    op, tensors = "concat", list(tensors)
    check(len(tensors) > 0, op, "expected a non-empty list of tensors")
    check_operands(op, **{f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)})
    first, rank = tensors[0], len(tensors[0].shape)
    check(-rank <= dim < rank, op, f"dim {dim} is out of bounds for {describe(first)}")
    dim %= rank
    for tensor in tensors[1:]:
        check(tensor.dtype is first.dtype, op, f"dtypes differ: {describe(first)} and {describe(tensor)}")
        check(tensor.layout is first.layout, op, f"layouts differ: {first.layout} and {tensor.layout}")
        others = [shape[:dim] + shape[dim + 1 :] for shape in (tuple(first.shape), tuple(tensor.shape))]
        check(others[0] == others[1], op, f"shapes differ outside dim {dim}: {describe(first)} and {describe(tensor)}")
    if len(tensors) == 1:
        return first.view(first.shape)
    values = torch.cat([tensor.values for tensor in tensors], dim)
    inside_tile = dim >= rank - 2 and any(tensor.shape[dim] % TILE_SIZE for tensor in tensors)
    dtype = DataType.BFLOAT16 if first.dtype.is_block_float and inside_tile else first.dtype
    return device_tensor(values, *tensors, dtype=dtype, memory_config=memory_config)


@per_chip
def permute(input_tensor: Tensor, dims, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """The tensor with its dimensions in the order ``dims``. Raises RuntimeError unless that is a permutation."""
    check_operands("permute", input_tensor=input_tensor)
    rank = len(input_tensor.shape)
    complete = sorted(d % rank for d in dims) == list(range(rank))
    check(complete, "permute", f"{list(dims)} is no permutation of the dimensions of {describe(input_tensor)}")
    values = input_tensor.values.permute(*dims)
    return _moved(values, input_tensor, memory_config)


@per_chip
def reshape(
    input_tensor: Tensor, shape, padded: Shape | None = None, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    """The tensor in another shape of the same volume; one size may be -1.

    A view on the same buffer where the stored data are the same: the width unchanged and, in tiles, the height too
    unless both heights are whole tiles. Works on host tensors as well. Raises RuntimeError for another volume.

    With ``padded``, the shape as stored, which must be the tensor's, it is always a view: rows change from padding to
    values or back. Those that come to light were never computed, and are NaN here.
    """
    if padded is not None:
        return _with_other_rows(input_tensor, shape, padded)
    volume = math.prod(input_tensor.shape)
    shape = list(shape)
    if shape.count(-1) == 1:
        known = -math.prod(shape)
        shape[shape.index(-1)] = volume // known if known else 0
    same = min(shape, default=0) >= 0 and math.prod(shape) == volume
    check(same, "reshape", f"{describe(input_tensor)} cannot take the shape {shape}")
    on_host = input_tensor.storage_type().name == "HOST"
    if not on_host:
        check_operands("reshape", input_tensor=input_tensor)
    if on_host or _stored_alike(input_tensor.shape, shape, input_tensor.layout):
        return input_tensor.view(shape)
    return _moved(input_tensor.values.view(shape), input_tensor, memory_config)


def _with_other_rows(tensor, shape, padded):
    op, tiled = "reshape", tensor.layout is Layout.TILE
    check_operands(op, input_tensor=tensor)
    same = (*shape[:-2], shape[-1]) == (*tensor.shape[:-2], tensor.shape[-1])
    same = same and padded == tensor.padded_shape == padded_shape(shape, tensor.layout)
    check(same and tiled, op, f"{describe(tensor)} cannot take the shape {shape} in the same tiles {padded}")
    return tensor.view(shape)


def _stored_alike(old, new, layout) -> bool:
    if (old[-1:] or (1,)) != (tuple(new[-1:]) or (1,)):
        return False
    heights = [(shape[-2] if len(shape) > 1 else 1) for shape in (old, new)]
    return layout is Layout.ROW_MAJOR or heights[0] == heights[1] or not any(height % TILE_SIZE for height in heights)


def _moved(values, tensor, memory_config):
    """Rearranged values of ``tensor``; block floats find themselves in other blocks and are packed anew."""
    if tensor.dtype.is_block_float:
        values = pack(values, tensor.dtype)
    return device_tensor(values, tensor, memory_config=memory_config or tensor.memory_config())


@per_chip
def fill_implicit_tile_padding(
    input_tensor: Tensor, fill_value: float, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    """The tensor with its tiles' padding set to ``fill_value``; the same tensor where there is none."""
    check_operands("fill_implicit_tile_padding", input_tensor=input_tensor)
    if input_tensor.padded_shape == input_tensor.shape:
        return input_tensor
    return Tensor(
        input_tensor.values,
        input_tensor.dtype,
        input_tensor.layout,
        input_tensor.device(),
        memory_config or input_tensor.memory_config(),
    )


@per_chip
def pad(input_tensor: Tensor, padding, value: float, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``padding``: (before, after) for each of the last dimensions, filled with ``value``.

    Raises RuntimeError for more pairs than dimensions, negative padding, and padding before the values of tiles.
    """
    op = "pad"
    check_operands(op, input_tensor=input_tensor)
    pairs = [tuple(pair) for pair in padding]
    check(len(pairs) <= len(input_tensor.shape), op, f"{len(pairs)} pairs of padding for {describe(input_tensor)}")
    check(all(min(pair) >= 0 for pair in pairs), op, f"padding must not be negative, got {pairs}")
    in_front = input_tensor.layout is Layout.TILE and any(before for before, _ in pairs)
    check(not in_front, op, f"tiles cannot be padded in front, got {pairs} for {describe(input_tensor)}")
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return _moved(torch.nn.functional.pad(input_tensor.values, flat, value=value), input_tensor, memory_config)


@per_chip
def upsample(
    input_tensor: Tensor,
    scale_factor,
    *,
    mode: str = "nearest",
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """``[N, H, W, C]`` to ``[N, H * sh, W * sw, C]`` by repeating pixels; row-major, whatever the input's layout.

    ``scale_factor``: one integer or (sh, sw). Only mode "nearest". Raises RuntimeError for tiles with padding.
    """
    op = "upsample"
    check_operands(op, input_tensor=input_tensor)
    check_rank(op, 4, input_tensor=input_tensor)
    check(mode == "nearest", op, f"mode must be 'nearest', got {mode!r}")
    unpadded = padded_shape(input_tensor.shape, input_tensor.layout) == input_tensor.shape
    check(unpadded, op, f"tiled input must be tile-aligned, got {describe(input_tensor)}")
    scales = (scale_factor, scale_factor) if isinstance(scale_factor, (int, float)) else tuple(scale_factor)
    check(all(scale == int(scale) >= 1 for scale in scales), op, f"scale factors must be whole numbers, got {scales}")
    n, h, w, c = input_tensor.shape
    sh, sw = map(int, scales)
    values = input_tensor.values.view(n, h, 1, w, 1, c).expand(n, h, sh, w, sw, c).reshape(n, h * sh, w * sw, c)
    dtype = DataType.BFLOAT16 if input_tensor.dtype.is_block_float else input_tensor.dtype
    return device_tensor(values, input_tensor, dtype=dtype, layout=Layout.ROW_MAJOR, memory_config=memory_config)


@per_chip
def embedding(
    input_tensor: Tensor,
    weight: Tensor,
    *,
    layout: Layout | None = None,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Rows of ``weight[V, D]`` by the ids ``[B, S]`` (uint32): ``[B, S, D]``, by default bf16 in the weight's layout.

    Raises RuntimeError for ids that are not uint32 or out of range (which TT-NN does not check), weights in fp32 or of
    more than two dimensions over 1, and another dtype in row-major.
    """
    op = "embedding"
    check_operands(op, input_tensor=input_tensor, weight=weight)
    check_dtype(op, [DataType.UINT32], input_tensor=input_tensor)
    check_dtype(op, [DataType.BFLOAT16, DataType.BFLOAT8_B, DataType.BFLOAT4_B], weight=weight)
    check(math.prod(weight.shape[:-2]) == 1, op, f"the weight must be [vocabulary, width], got {describe(weight)}")
    layout, dtype = layout or weight.layout, dtype or DataType.BFLOAT16
    castable = dtype is DataType.BFLOAT16 or layout is Layout.TILE
    check(castable, op, f"only TILE output can be {dtype.name}")
    ids, table = input_tensor.values, weight.values.reshape(weight.shape[-2:])
    check(ids.numel() == 0 or int(ids.max()) < len(table), op, f"an id is beyond the {len(table)} rows of the weight")
    rows = torch.nn.functional.embedding(ids, table)
    rows = rows.reshape(*(ids.shape if ids.dim() == 1 else (ids.shape[0], -1)), table.shape[1])
    values = pack(rows.to(torch.float32), dtype)
    return device_tensor(values, weight, dtype=dtype, layout=layout, memory_config=memory_config)
