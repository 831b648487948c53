"""Operations in which the chips along an axis of a mesh exchange data.

Sums are made as TT-NN's kernels make them (``reduce_scatter_minimal_async``, and ``reduce_scatter_minimal_direct`` for
up to 512 KB on a ring): partial sums travel from chip to chip in the tensor's own dtype, so that every hop rounds, and
the matrix unit adds, which takes fp32 as TF32. No intermediate buffers are counted.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch

from .checks import check, check_dtype, check_operands, describe
from .eltwise import chunked
from .formats import aligned_sum, as_multiplied, pack, round_to_bf16_
from .mesh import MeshTensor, lines
from .tensor import Tensor
from .types import TILE_SIZE, DataType, FabricConfig, Layout, MemoryConfig, Topology

DIRECT_BYTES = 512 * 1024
"""Of a chip's tensor, up to which chips on a ring send their parts straight to where they are summed."""


def all_gather(
    input_tensor: Tensor,
    dim: int,
    *,
    cluster_axis: int | None = None,
    memory_config: MemoryConfig | None = None,
    num_links: int | None = None,
    topology: Topology | None = None,
) -> Tensor:
    """The tensors of all chips along an axis of the mesh, joined along ``dim``, on each of these chips.

    ``cluster_axis`` may be left out on a mesh of one row or column. The number of links and the topology change speed
    only. Raises RuntimeError for an axis of one chip, without a fabric, and for block floats whose tiles are not full.
    """
    op, x = "all_gather", input_tensor
    axis = checked_axis(op, x, cluster_axis)
    dim = _checked_dim(op, x, dim)
    full = x.padded_shape[dim] == x.shape[dim] or not x.dtype.is_block_float
    check(full, op, f"dimension {dim} of {describe(x)} is not whole tiles, which is not emulated for block floats")

    def gather(parts):
        return [torch.cat(parts, dim)] * len(parts)

    return exchanged(x, axis, gather, memory_config)


def get_usable_topology(tensor: Tensor, topology: Topology | None = None, cluster_axis: int | None = None) -> Topology:
    """What ``topology``, by default the fabric's, comes to along an axis of the tensor's mesh: a line where no cable
    joins its ends."""
    device = tensor.device()
    if topology is None:
        topology = Topology.Ring if device.fabric is FabricConfig.FABRIC_1D_RING else Topology.Linear
    closes = device.rings[_axis("get_usable_topology", device.shape, cluster_axis)]
    return topology if closes else Topology.Linear


def mesh_partition(
    input_tensor: Tensor, dim: int, cluster_axis: int | None = None, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    """Of each chip's tensor the part along ``dim`` that belongs to its place on the axis: the inverse of a gather.

    On an axis of one chip it is the tensor itself. Raises RuntimeError for sizes that do not divide into parts of whole
    tiles.
    """
    op, x = "mesh_partition", input_tensor
    check_operands(op, input_tensor=x)
    dim, shape = _checked_dim(op, x, dim), x.device().shape
    axis = _axis(op, shape, cluster_axis)
    if shape[axis] == 1:
        return x
    _check_parts(op, x, dim, shape[axis])

    def partition(parts):
        return [part.chunk(len(parts), dim)[i].contiguous() for i, part in enumerate(parts)]

    return exchanged(x, axis, partition, memory_config)


def reduce_scatter(
    input_tensor: Tensor,
    dim: int,
    *,
    cluster_axis: int | None = None,
    memory_config: MemoryConfig | None = None,
    num_links: int | None = None,
    topology: Topology | None = None,
) -> Tensor:
    """The sum of the tensors of all chips along an axis, of which each chip gets its part along ``dim``.

    ``topology`` is the fabric's unless given; an axis whose ends no cable joins is a line. Raises RuntimeError for an
    axis of one chip, without a fabric, for row-major tensors, and for sizes that do not divide into parts of whole
    tiles.
    """
    op, x = "reduce_scatter", input_tensor
    axis = checked_axis(op, x, cluster_axis)
    dim = _checked_dim(op, x, dim)
    _check_summable(op, x)
    check(x.layout is Layout.TILE, op, f"only tiles are emulated, got {x.layout}")
    _check_parts(op, x, dim, x.device().shape[axis])
    total = _sum_method(op, x, axis, topology)

    def scatter(parts):
        slices = zip(*(part.chunk(len(parts), dim) for part in parts))
        return [total(list(of_chip), place) for place, of_chip in enumerate(slices)]

    return exchanged(x, axis, scatter, memory_config)


def all_reduce(
    input_tensor: Tensor,
    *,
    cluster_axis: int | None = None,
    memory_config: MemoryConfig | None = None,
    num_links: int | None = None,
    topology: Topology | None = None,
) -> Tensor:
    """The sum of the tensors of all chips along an axis of the mesh, on each of them; without an axis over both.

    A reduce-scatter and a gather along the last dimension whose tiles divide by the chips; where there is none each
    chip gathers all and adds them up. Raises RuntimeError as these do.
    """
    op, x = "all_reduce", input_tensor
    check_operands(op, input_tensor=x)
    options = {"memory_config": memory_config, "num_links": num_links, "topology": topology}
    if cluster_axis is None and 1 not in x.device().shape:
        for axis in (0, 1):
            x = all_reduce(x, cluster_axis=axis, **options)
        return x
    axis = checked_axis(op, x, cluster_axis)
    _check_summable(op, x)
    chips, stored = x.device().shape[axis], x.padded_shape
    tiles = [*stored[:-2], *(size // TILE_SIZE for size in stored[-2:])]
    dim = next((i for i in reversed(range(len(tiles))) if tiles[i] % chips == 0), None)
    if x.layout is Layout.TILE and dim is not None and stored[dim] == x.shape[dim]:
        part = reduce_scatter(x, dim, cluster_axis=axis, **options)
        return all_gather(part, dim, cluster_axis=axis, memory_config=memory_config)

    def add_up(parts):
        return [_sum_of_gathered(parts, x.dtype)] * len(parts)

    return exchanged(x, axis, add_up, memory_config)


def exchanged(x: MeshTensor, axis: int, compute: Callable, memory_config: MemoryConfig | None) -> MeshTensor:
    """What ``compute`` makes of the values along each line of chips: a list of values for a list of values."""
    results, done, chips = [None] * len(x.shards), {}, x.device().chips
    for line in lines(x.device().shape, axis):
        key = tuple(x.shards[i].address for i in line)
        if key not in done:
            done[key] = compute([x.shards[i].values for i in line])
        for i, values in zip(line, done[key]):
            memory = memory_config or x.memory_config()
            results[i] = Tensor(values, x.dtype, x.layout, chips[i], memory, x.unknown_padding)
    return MeshTensor(results, x.device())


def checked_axis(op: str, x: Tensor, cluster_axis: int | None) -> int:
    """The axis along which to exchange data. Raises RuntimeError where it has one chip, and without a fabric."""
    check_operands(op, input_tensor=x)
    device = x.device()
    axis = _axis(op, device.shape, cluster_axis)
    check(device.shape[axis] > 1, op, f"works for more than one chip only, got axis {axis} of {device.shape}")
    fabric = device.fabric is not FabricConfig.DISABLED
    check(fabric, op, "there is no fabric: call set_fabric_config before opening the device")
    return axis


def _sum_method(op, x: Tensor, axis: int, topology: Topology | None) -> Callable:
    """The function of the chips' slices and the place on the axis of the chip that gets their sum."""
    fabric = x.device().fabric
    on_ring = fabric is FabricConfig.FABRIC_1D_RING
    check(topology is not Topology.Ring or on_ring, op, f"{topology} needs FABRIC_1D_RING, got {fabric}")
    if get_usable_topology(x, topology, axis) is Topology.Linear:
        return functools.partial(_line_sum, x.dtype)
    if math.prod(x.padded_shape) // TILE_SIZE**2 * x.dtype.tile_bytes <= DIRECT_BYTES:
        return functools.partial(_direct_sum, x.dtype)
    return functools.partial(_ring_sum, x.dtype)


def _line_sum(dtype, slices: Sequence[torch.Tensor], place: int) -> torch.Tensor:
    """Partial sums come from the first chip and from the last, in this order to the chip itself."""
    add = functools.partial(_added, dtype)
    total = functools.reduce(add, slices[: place + 1])
    after = slices[place + 1 :]
    return add(total, functools.reduce(add, reversed(after))) if after else total


def _ring_sum(dtype, slices: Sequence[torch.Tensor], place: int) -> torch.Tensor:
    """Partial sums come from half-way round the ring both ways, and the chip adds both to its slice.

    Which way has a chip more goes by turns, chunk of tiles by chunk.
    """
    chips, half = len(slices), len(slices) // 2
    add = functools.partial(_added, dtype)

    def total(forward, backward):
        before = functools.reduce(add, [slices[(place - i) % chips] for i in range(forward, 0, -1)])
        after = functools.reduce(add, [slices[(place + i) % chips] for i in range(backward, 0, -1)])
        return _accumulated(dtype, [after], [(before, slices[place])])

    even, odd = total(half, half - 1), total(half - 1, half)
    rows, width = (math.ceil(size / TILE_SIZE) for size in even.shape[-2:])
    chunks = torch.arange(rows * width, device=even.device) // (4 if dtype is DataType.FLOAT32 else 8)
    is_even = (chunks % 2 == 0).view(rows, width).repeat_interleave(TILE_SIZE, 0).repeat_interleave(TILE_SIZE, 1)
    return torch.where(is_even[: even.shape[-2], : even.shape[-1]], even, odd)


def _direct_sum(dtype, slices: Sequence[torch.Tensor], place: int) -> torch.Tensor:
    """The chip's own slice and the others' in order, added to the destination in pairs."""
    ordered = [slices[place], *slices[:place], *slices[place + 1 :]]
    first = len(ordered) % 2
    return _accumulated(dtype, ordered[:first], list(zip(ordered[first::2], ordered[first + 1 :: 2])))


def _added(dtype, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _accumulated(dtype, [], [(a, b)])


def _accumulated(dtype, start: Sequence[torch.Tensor], pairs) -> torch.Tensor:
    """The matrix unit's sums of pairs, added to what the destination starts with, if anything; rounded each time."""
    round_ = (lambda values: values) if dtype is DataType.FLOAT32 else round_to_bf16_

    def compute(*values):
        total = values[0] if start else None
        for a, b in zip(values[len(start) :: 2], values[len(start) + 1 :: 2]):
            pair = aligned_sum(a, b)
            total = round_(pair if total is None else total.add_(pair))
        return total

    operands = [*start, *(value for pair in pairs for value in pair)]
    return chunked(compute, dtype, operands[0].shape, *operands)


def _sum_of_gathered(parts: Sequence[torch.Tensor], dtype: DataType) -> torch.Tensor:
    """One after the other in a bf16 destination, or in fp32 of what the matrix unit's registers hold of them."""
    if dtype is DataType.FLOAT32:
        return sum(as_multiplied(part) for part in parts)
    total = functools.reduce(lambda a, b: round_to_bf16_(a + b), [part.float() for part in parts])
    return pack(total, dtype)


def _axis(op, shape, cluster_axis) -> int:
    if cluster_axis is None:
        check(1 in shape, op, f"a mesh of {shape} requires cluster_axis to be set")
        return shape.index(max(shape))
    check(cluster_axis in (0, 1), op, f"cluster axis must be 0 or 1, got {cluster_axis}")
    return cluster_axis


def _checked_dim(op, x, dim) -> int:
    rank = len(x.shape)
    check(-rank <= dim < rank, op, f"invalid dimension {dim} of {describe(x)}")
    return dim % rank


def _check_summable(op, x) -> None:
    check(len(x.shape) >= 2, op, f"the input must have at least two dimensions, got {describe(x)}")
    check_dtype(op, [DataType.BFLOAT16, DataType.BFLOAT8_B, DataType.FLOAT32], input_tensor=x)


def _check_parts(op, x, dim, count) -> None:
    whole = TILE_SIZE if x.layout is Layout.TILE and dim >= len(x.shape) - 2 else 1
    divides = x.shape[dim] % (count * whole) == 0
    check(divides, op, f"dimension {dim} of {describe(x)} does not divide into {count} parts of whole tiles")
