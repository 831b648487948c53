"""Operations in which the chips along an axis exchange data while they compute: a matrix product that gathers its
input, and a layer norm of rows that are split.

Sources: TT-NN 0.81.1's kernels of ``all_gather_minimal_matmul_async`` and ``dit_fused_distributed_rmsnorm``, and what
its mock device accepts. No results of theirs were at hand.
"""

import functools
import math
from collections.abc import Sequence

import torch

from .checks import check, check_dtype, check_layout, check_operands, describe
from .collectives import checked_axis
from .device import MeshDevice
from .eltwise import chunked
from .formats import aligned_sum, as_multiplied
from .gemm import ACCURATE
from .matmul import minimal_matmul_split
from .matrix_unit import multiply
from .mesh import MeshTensor, lines, per_chip
from .semaphores import GlobalSemaphore, take_turn
from .tensor import Tensor, device_tensor
from .transfer import empty
from .types import (
    TILE_SIZE,
    DataType,
    FabricConfig,
    Layout,
    MathFidelity,
    MemoryConfig,
    MinimalMatmulConfig,
    Topology,
    WormholeComputeKernelConfig,
)

PACKET_ROWS = 17
"""Rows of tiles whose statistics a packet holds."""
FEW_ROWS = 4
"""Rows of tiles from which on a norm takes more than one core."""


def all_gather_minimal_matmul_async(
    input_tensor: Tensor,
    weight_tensor: Tensor,
    *,
    bias_tensor: Tensor | None = None,
    fused_activation=None,
    config: MinimalMatmulConfig | None = None,
    multi_device_global_semaphore: Sequence[GlobalSemaphore],
    topology: Topology = Topology.Ring,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    persistent_output_buffer: Tensor | None = None,
    num_links: int = 1,
    cluster_axis: int | None = None,
    num_workers_per_link: int = 1,
    num_buffers_per_channel: int = 1,
    chunks: int = 1,
) -> list[Tensor]:
    """``minimal_matmul_split`` of what the chips along an axis have of an input ``[..., M, K / chips]``, side by side.

    Other chips' shares come into the buffer ``[..., M, K]``. Raises RuntimeError for an axis of one chip, without a
    fabric; for shares that are not whole tiles, and blocks along K larger than a share, which on a ring they must
    divide; for a grid with the last row of cores, which serves the links, and another number of senders for a link than
    the grid's columns give; for semaphores or buffers used twice in a row. Where TT-NN would hang or be wrong: for a
    ring that does not close, also of two chips, and for buffers that don't fit.
    """
    op, x, buffer = "all_gather_minimal_matmul_async", input_tensor, persistent_output_buffer
    axis = checked_axis(op, x, cluster_axis)
    check(buffer is not None, op, "persistent_output_buffer is needed")
    check_operands(op, input_tensor=x, weight_tensor=weight_tensor, bias=bias_tensor, persistent_output_buffer=buffer)
    check_layout(op, Layout.TILE, input_tensor=x, persistent_output_buffer=buffer)
    chips, (*outer, width) = x.device().shape[axis], x.shape
    _check_topology(op, x.device(), axis, topology)
    check(width % TILE_SIZE == 0, op, f"a chip's share must be whole tiles, got {describe(x)}")
    inner = weight_tensor.shape[-2]
    check(chips * width == inner, op, f"inner dimensions must match, got {chips} x K={width} and K_w={inner}")
    fits = list(buffer.shape) == [*outer, inner] and buffer.dtype is x.dtype
    check(fits, op, f"persistent_output_buffer must be {[*outer, inner]} {x.dtype.name}, got {describe(buffer)}")
    _check_cores(op, x.device(), config, num_links, num_workers_per_link)
    _check_blocks(op, config, width // TILE_SIZE, topology)
    semaphores = list(multi_device_global_semaphore)
    check(len(semaphores) == len(set(semaphores)) == 2, op, "two different semaphores are needed")
    take_turn(op, x.device(), semaphores, [buffer])

    for line in lines(x.device().shape, axis):
        gathered = torch.cat([x.shards[i].values for i in line], -1)
        for i in line:
            buffer.shards[i].write(gathered)
    return minimal_matmul_split(
        buffer,
        weight_tensor,
        chunks=chunks,
        bias_tensor=bias_tensor,
        fused_activation=fused_activation,
        memory_config=memory_config,
        dtype=dtype,
        compute_kernel_config=compute_kernel_config,
    )


def _check_topology(op, device: MeshDevice, axis: int, topology: Topology) -> None:
    """TT-NN lets pass a ring that does not close; its chips would wait for what nobody sends."""
    closes = device.fabric is FabricConfig.FABRIC_1D_RING and device.rings[axis]
    check(topology is Topology.Linear or closes, op, f"would hang: axis {axis} of {device.shape} is no ring")


def _check_cores(op, device: MeshDevice, config, links: int, senders: int) -> None:
    check(config is not None, op, "a config is needed, since the default grid has no cores left for the links")
    grid, whole = config.compute_with_storage_grid_size, device.compute_with_storage_grid_size()
    free = grid.x <= whole.x and grid.y < whole.y
    check(free, op, f"the grid {grid.x}x{grid.y} must leave the last row of {whole.x}x{whole.y} cores to the links")
    groups = links > 0 and math.ceil(grid.x / senders) == links
    check(groups, op, f"{grid.x} columns must form exactly num_links ({links}) groups of {senders}")


def _check_blocks(op, config: MinimalMatmulConfig, tiles: int, topology: Topology) -> None:
    block = config.K_block_size
    fits = 0 < block <= tiles and (topology is Topology.Linear or tiles % block == 0)
    check(fits, op, f"K_block_size {block} must divide a chip's {tiles} tiles, or be less in a line")
    for size, part in ((config.M_block_size, config.subblock_h), (config.N_block_size, config.subblock_w)):
        check(size > 0 and part > 0 and size % part == 0, op, f"a block of {size} must be whole subblocks of {part}")


def dit_fused_distributed_layernorm_create_stats_buffer(
    input_tensor: Tensor, cluster_axis: int, mesh_device: MeshDevice, *, num_links: int = 1
) -> Tensor:
    """What ``dit_fused_distributed_layernorm`` of such an input over so many links takes for its statistics."""
    op = "dit_fused_distributed_layernorm_create_stats_buffer"
    axis = checked_axis(op, input_tensor, cluster_axis)
    shape = _statistics_shape(op, input_tensor, mesh_device.shape[axis], num_links)
    return empty(shape, DataType.FLOAT32, Layout.ROW_MAJOR, mesh_device)


def _statistics_shape(op, x: Tensor, chips: int, links: int) -> list[int]:
    """A row for each packet: its rows of tiles have mean and variance of 32 rows each."""
    # Cores are dealt out to links by their number over the links', rounded up: of five cores, a fourth link gets -1.
    check(links in (1, 2), op, f"some numbers of rows would hang over more than two links, got {links}")
    rows = math.ceil(math.prod(x.shape[:-1]) / TILE_SIZE)
    workers = 1 if rows < FEW_ROWS else min(rows, PACKET_ROWS * links)
    packets = min(links, workers) * math.ceil(rows / workers)
    return [1, 1, chips * packets, PACKET_ROWS * 2 * TILE_SIZE]


def dit_fused_distributed_layernorm(
    input_tensor: Tensor,
    cluster_axis: int,
    mesh_device: MeshDevice,
    multi_device_global_semaphore: Sequence[GlobalSemaphore],
    *,
    topology: Topology = Topology.Ring,
    epsilon: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    persistent_output_buffer: Tensor | None = None,
    num_preferred_links: int = 1,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """Layer norm over the features of all chips along an axis, of which each has ``[1, 1, S, W]``, in bf16.

    ``weight`` and ``bias`` ``[..., W]`` are a chip's. ``persistent_output_buffer``: from ``..._create_stats_buffer``,
    for as many links. Raises RuntimeError for an axis of one chip, without a fabric; for other shapes, dtypes and
    buffers; for semaphores and buffers used twice in a row; and where TT-NN would hang: for a ring that does not close.
    """
    op, x, buffer = "dit_fused_distributed_layernorm", input_tensor, persistent_output_buffer
    axis = checked_axis(op, x, cluster_axis)
    check(mesh_device is x.device(), op, "the mesh device must be the tensor's")
    chips = mesh_device.shape[axis]
    _check_topology(op, mesh_device, axis, topology)
    check_operands(op, input_tensor=x, weight=weight, bias=bias, persistent_output_buffer=buffer)
    check_layout(op, Layout.TILE, input_tensor=x, weight=weight, bias=bias)
    check_dtype(op, [DataType.BFLOAT16], input_tensor=x)
    check_dtype(op, [DataType.BFLOAT16, DataType.FLOAT32], weight=weight, bias=bias)
    whole = len(x.shape) == 4 and x.shape[:2] == (1, 1) and x.shape[3] % TILE_SIZE == 0
    check(whole, op, f"the input must be [1, 1, S, W] with whole tiles along W, got {describe(x)}")
    check(bias is None or weight is not None, op, "a bias requires a weight")
    for name, parameter in (("weight", weight), ("bias", bias)):
        row = parameter is None or math.prod(parameter.shape) == parameter.shape[-1] == x.shape[3]
        check(row, op, f"{name} must be one row of {x.shape[3]}, got {describe(parameter) if parameter else parameter}")
    check(buffer is not None, op, "persistent_output_buffer is required for more than one chip")
    shape = _statistics_shape(op, x, chips, num_preferred_links)
    fits = list(buffer.shape) == shape and buffer.dtype is DataType.FLOAT32 and buffer.layout is Layout.ROW_MAJOR
    check(fits, op, f"persistent_output_buffer must be {shape} FLOAT32 in rows, got {describe(buffer)}")
    config = compute_kernel_config or ACCURATE
    check(config.fp32_dest_acc_en, op, "a bfloat16 destination is not emulated: fp32_dest_acc_en must be set")
    semaphores = list(multi_device_global_semaphore)
    check(bool(semaphores), op, "multi_device_global_semaphore must not be empty")
    take_turn(op, mesh_device, semaphores, [buffer])

    statistics = [None] * len(x.shards)
    for line in lines(mesh_device.shape, axis):
        shared = _statistics([x.shards[i].values for i in line], epsilon)
        for i in line:
            statistics[i] = Tensor(shared, DataType.FLOAT32, Layout.ROW_MAJOR)
    return _normalised(x, MeshTensor(statistics, None), weight, bias, config.math_fidelity, memory_config)


def _statistics(parts: Sequence[torch.Tensor], epsilon: float) -> torch.Tensor:
    """Mean and reciprocal standard deviation of rows whose features are in these parts, fp32 ``[S, 2]``.

    Each chip makes its own in fp32, by Welford's method. The matrix unit adds them up in pairs of chips, as TF32.
    """
    variances, means = zip(*(torch.var_mean(part[0, 0].float(), -1, correction=0) for part in parts))
    mean = _total(means).div_(len(parts))
    between = sum((as_multiplied(own) - mean).square_() for own in means)
    variance = _total(variances).add_(between).div_(len(parts))
    return torch.stack([mean, variance.add_(epsilon).rsqrt_()], -1)


def _total(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.Tensor.add_, [aligned_sum(a, b) for a, b in zip(values[::2], values[1::2])])


@per_chip
def _normalised(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    fidelity: MathFidelity,
    memory_config: MemoryConfig | None,
) -> Tensor:
    """The steps of ``layer_norm``, with these statistics."""
    mean, scale = statistics.values.split(1, -1)
    parameters = [parameter.values.view(-1) for parameter in (weight, bias) if parameter is not None]

    def compute(values, mean, scale, *affine):
        y = multiply(aligned_sum(values, -mean), scale, fidelity)
        if affine:
            y = multiply(y, affine[0], fidelity)
        return aligned_sum(y, affine[1]) if affine[1:] else y

    values = chunked(compute, x.dtype, x.shape, x.values, mean, scale, *parameters)
    return device_tensor(values, x, memory_config=memory_config)
