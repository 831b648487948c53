"""Group norm of feature maps on the cores of a grid, step by step as TT-NN's kernel for Wormhole computes it.

Each core sums its rows, one of them the cores' sums, both times scaled by roots of counts. Between the steps values lie
in L1 in the map's format. In bf16 that costs the statistics half a percent and more: the roots are cut to bf16, which
makes mean and variance too small, and the mean that is subtracted has eight bits. In fp32 they come back to the matrix
unit as TF32, an eighth of the error.
"""

import math

import torch

from .checks import check, check_dtype, check_layout, check_operands, describe
from .device import MeshDevice
from .formats import CHUNK_ELEMENTS, aligned_sum, keep_significant_bits, pack, round_to_bf16_
from .gemm import ACCURATE
from .matrix_unit import GROUP, column_sums, multiply
from .mesh import per_chip
from .tensor import Tensor, device_tensor
from .transfer import from_torch
from .types import TILE_SIZE, CoreGrid, DataType, Layout, MemoryConfig, WormholeComputeKernelConfig

FACE = 16
"""Columns that are summed side by side."""
_SLOT_BYTES = 16
"""Pitch at which a core's sum is put beside the others'."""


@per_chip
def determine_expected_group_norm_dram_grid_size(
    *, device: MeshDevice, num_channels: int, num_groups: int, input_nhw: int, num_batches: int = 1
) -> CoreGrid:
    """The largest grid (first x, then y) whose cores share the ``input_nhw`` rows of tiles of a group norm evenly.

    A rule found by experiment; it gave TT-NN's answer for every size tried.
    """
    assert num_channels % num_groups == 0 and num_channels % TILE_SIZE == 0
    grid, tile_rows = device.compute_with_storage_grid_size(), math.ceil(input_nhw / TILE_SIZE)
    for x in range(grid.x, 0, -1):
        columns = _virtual_columns(x, num_channels, num_groups)
        for y in range(grid.y, 0, -1):
            if x % columns == 0 and tile_rows % (x // columns * y) == 0:
                return CoreGrid(x=x, y=y)
    raise RuntimeError(
        f"TT_FATAL: group_norm: no grid for {num_channels} channels, {num_groups} groups, {input_nhw} rows"
    )


def _virtual_columns(grid_x: int, channels: int, groups: int) -> int:
    """The most columns of cores that can each take whole tiles of channels and whole groups."""
    return max(n for n in range(1, grid_x + 1) if groups % n == channels % n == 0 and channels // n % TILE_SIZE == 0)


@per_chip
def dram_group_norm_params_from_torch(
    torch_params,
    channels_per_device: int,
    groups_per_device: int,
    device: MeshDevice,
    core_grid: CoreGrid | None = None,
    return_mask: bool = True,
    dtype: DataType = DataType.BFLOAT16,
):
    """Weight and bias ``[C]`` (one torch tensor or several) for ``group_norm``, row-major ``[1, 1, C / 32, 32]``.

    With ``return_mask`` also the mask ``[1, groups, 32, 32 * n]`` that says which columns of a tile belong to a group.
    """
    channels, groups = channels_per_device, groups_per_device
    assert channels % TILE_SIZE == 0 == channels % groups, (
        f"{channels} channels: not divisible by 32 and {groups} groups"
    )
    alone = isinstance(torch_params, torch.Tensor)
    params = [
        from_torch(values.reshape(1, 1, channels // TILE_SIZE, TILE_SIZE), dtype, device=device)
        for values in ([torch_params] if alone else torch_params)
    ]
    params = params[0] if alone else params
    if not return_mask:
        return params
    grid = core_grid or device.compute_with_storage_grid_size()
    per_column = groups // _virtual_columns(grid.x, channels, groups)
    size = channels // groups
    starts = [group % per_column * size % TILE_SIZE for group in range(groups)]
    width = math.ceil((max(starts) + size) / TILE_SIZE) * TILE_SIZE
    columns, first = torch.arange(width), torch.tensor(starts).view(-1, 1, 1)
    mask = ((columns >= first) & (columns < first + size)).expand(groups, TILE_SIZE, width)
    return params, from_torch(mask.unsqueeze(0).float(), dtype, layout=Layout.TILE, device=device)


@per_chip
def group_norm(
    input_tensor: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-12,
    input_mask: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    core_grid: CoreGrid | None = None,
    inplace: bool | None = True,
    output_layout: Layout | None = None,
    num_out_blocks: int | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """Group norm of ``[N, 1, H * W, C]`` in tiles, groups along C, statistics over H * W and a group's channels.

    ``weight``, ``bias`` and ``input_mask`` as ``dram_group_norm_params_from_torch`` makes them; ``inplace`` must be
    False or None. The padding of a map that fills no tiles may hold anything, infinity and NaN too: the kernel
    multiplies it by zero before it sums, and on the matrix unit zero times anything is zero. Raises RuntimeError for
    other shapes, dtypes and layouts.
    """
    op, x = "group_norm", input_tensor
    check_operands(op, input_tensor=x, weight=weight, bias=bias, input_mask=input_mask)
    check_layout(op, Layout.TILE, input_tensor=x, input_mask=input_mask)
    check_layout(op, Layout.ROW_MAJOR, weight=weight, bias=bias)
    check(not inplace, op, "in-place operation is not supported for tiles")
    check_dtype(op, (DataType.BFLOAT16, DataType.FLOAT32), input_tensor=x)
    check(dtype in (None, x.dtype), op, f"the output dtype must be the input's, {x.dtype.name}, got {dtype}")
    check(len(x.shape) == 4 and x.shape[1] == 1, op, f"the input must be [N, 1, H * W, C], got {describe(x)}")
    images, _, positions, channels = x.shape
    check(channels % num_groups == 0, op, f"{channels} channels are not divisible into {num_groups} groups")
    check(channels % TILE_SIZE == 0, op, f"{channels} channels are not whole tiles")
    blocked_alone = core_grid is None and num_out_blocks is not None
    check(not blocked_alone, op, "num_out_blocks cannot be given without a core_grid")
    masked = input_mask is None or input_mask.shape[1] == num_groups
    check(masked, op, f"the mask must have {num_groups} groups, got {input_mask and describe(input_mask)}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        fits = parameter is None or parameter.values.numel() == channels and parameter.shape[-1] == TILE_SIZE
        check(fits, op, f"{name} must be [1, 1, {channels} / 32, 32], got {parameter and describe(parameter)}")
    config = compute_kernel_config or ACCURATE
    check(config.fp32_dest_acc_en, op, "a bfloat16 destination is not emulated: fp32_dest_acc_en must be set")
    grid = core_grid or determine_expected_group_norm_dram_grid_size(
        device=x.device(), num_channels=channels, num_groups=num_groups, input_nhw=images * positions
    )
    cores = grid.x // _virtual_columns(grid.x, channels, num_groups) * grid.y
    norm = _ImageNorm(x, num_groups, epsilon, max(1, cores // images), config.math_fidelity)
    affine = [None if parameter is None else parameter.values.view(channels).float() for parameter in (weight, bias)]
    result = torch.empty_like(x.values)
    for image, out in zip(x.values.flatten(0, 1), result.flatten(0, 1)):
        norm(image, out, *affine)
    return device_tensor(result, x, layout=output_layout, memory_config=memory_config)


class _ImageNorm:
    """Norms one image ``[H * W, C]`` of ``x`` after the other, on ``cores`` cores that share its rows of tiles."""

    def __init__(self, x: Tensor, groups: int, epsilon: float, cores: int, fidelity):
        positions, channels = x.shape[2:]
        self.dtype, self.groups, self.size, self.fidelity = x.dtype, groups, channels // groups, fidelity
        self.source_bits = 8 if x.dtype is DataType.BFLOAT16 else 11
        tile_rows = math.ceil(positions / TILE_SIZE)
        self.core_rows = math.ceil(tile_rows / cores) * TILE_SIZE
        self.cores = math.ceil(positions / self.core_rows)
        self.step = max(1, CHUNK_ELEMENTS // channels // TILE_SIZE) * TILE_SIZE
        # Sums are scaled twice, in columns and across them. Rows of padding don't count.
        count = self.core_rows * self.size * positions / (tile_rows * TILE_SIZE)
        scalers = torch.tensor([count**-0.5, self.cores**-0.5], device=x.values.device)
        self.core_scaler, self.cores_scaler = self._source(scalers)
        self.epsilon = torch.tensor(epsilon, dtype=torch.bfloat16, device=x.values.device).float()

    def __call__(self, image, out, weight, bias):
        mean = self._by_channel(self._mean(image, lambda rows: rows, rounded=False))

        def squared_differences(rows):
            differences = self._differences(rows, mean)
            return self._stored(multiply(differences, differences, self.fidelity))

        variance = self._mean(image, squared_differences, rounded=True)
        scale = self._by_channel(self._stored(aligned_sum(variance, self.epsilon).rsqrt_()))
        for rows, target in zip(image.split(self.step), out.split(self.step)):
            y = self._stored(multiply(self._differences(rows.float(), mean), scale, self.fidelity))
            if weight is not None:
                y = self._stored(multiply(y, weight, self.fidelity))
            target.copy_(pack(y if bias is None else aligned_sum(y, bias), self.dtype))

    def _mean(self, image, terms, rounded):
        """The means ``[groups]`` of ``terms(rows)`` over all rows and a group's channels."""
        channels = image.shape[1]
        sums = torch.zeros(self.cores, channels, device=image.device)
        together = max(1, self.step // self.core_rows)
        whole = self.core_rows if self.core_rows <= self.step else TILE_SIZE
        for first in range(0, self.cores, together):
            of_cores = sums[first : first + together]
            band = image[first * self.core_rows : (first + together) * self.core_rows]
            for rows in band.split(self.step):
                rows = terms(rows.float())
                if len(rows) % whole:
                    rows = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % whole))
                rows = rows.view(len(of_cores), -1, channels)
                of_cores += column_sums(rows, self.core_scaler, self.fidelity, rounded)
        # Each core sums across the columns of a face.
        channel = torch.arange(channels, device=image.device)
        columns = torch.zeros(self.cores, FACE * self.groups, device=image.device)
        columns.index_add_(1, channel % FACE * self.groups + channel // self.size, sums)
        of_cores = self._across(columns, self.core_scaler)
        # One of them sums a tile of what all have found.
        pitch = _SLOT_BYTES // self.dtype.element_bytes
        rows = math.ceil(self.cores * pitch / FACE / GROUP) * GROUP
        tile = torch.zeros(rows * FACE, self.groups, device=image.device)
        tile[: self.cores * pitch : pitch] = of_cores
        columns = column_sums(tile.view(rows, FACE * self.groups), self.cores_scaler, self.fidelity)
        return self._across(columns, self.cores_scaler)

    def _across(self, columns, scaler):
        """Sums of columns ``[..., 16 * groups]``, summed to ``[..., groups]``."""
        columns = self._source(columns).unflatten(-1, (FACE, self.groups))
        return self._stored(column_sums(columns, scaler, self.fidelity))

    def _differences(self, x, mean):
        """From the mean ``[C]``, as the mask's multiplication by one leaves them."""
        return keep_significant_bits(self._stored(aligned_sum(x, -mean)), 10)

    def _by_channel(self, of_groups):
        return of_groups.repeat_interleave(self.size)

    def _source(self, values):
        """As the matrix unit's source registers hold them."""
        return keep_significant_bits(values, self.source_bits)

    def _stored(self, values):
        """As they lie in L1 between steps."""
        return round_to_bf16_(values) if self.dtype is DataType.BFLOAT16 else values
