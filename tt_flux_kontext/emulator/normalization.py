"""Normalisations and softmax: statistics in fp32, one rounding at the end."""

import math
from collections.abc import Sequence

import torch

from .checks import check, check_dtype, check_layout, check_operands, describe
from .device import MeshDevice
from .eltwise import FLOATS, chunked
from .formats import CHUNK_ELEMENTS, multiplier_operands, pack
from .gemm import ACCURATE, as_multiplied
from .tensor import Tensor, device_tensor
from .transfer import from_torch
from .types import TILE_SIZE, CoreGrid, DataType, Layout, MemoryConfig, WormholeComputeKernelConfig

_NORMALISED = (DataType.BFLOAT16, DataType.FLOAT32, DataType.BFLOAT8_B)


def layer_norm(
    input_tensor: Tensor,
    *,
    epsilon: float = 1e-12,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual_input_tensor: Tensor | None = None,
    memory_config: MemoryConfig | None = None,
    program_config=None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """``(y - mean) / sqrt(variance + epsilon) * weight + bias`` over the last dimension, ``y = input + residual``.

    ``weight`` and ``bias``: one row ``[1, W]`` (any rank) or row-major ``[1, 1, W / 32, 32]``. Raises RuntimeError for
    other shapes (TT-NN ignores all rows but the first), dtypes and layouts.
    """

    def normalise(x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=epsilon)

    return _row_norm("layer_norm", normalise, input_tensor, weight, bias, residual_input_tensor, memory_config)


def rms_norm(
    input_tensor: Tensor,
    *,
    epsilon: float = 1e-12,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual_input_tensor: Tensor | None = None,
    memory_config: MemoryConfig | None = None,
    program_config=None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """``y / sqrt(mean(y^2) + epsilon) * weight + bias`` over the last dimension; operands as in ``layer_norm``."""

    def normalise(x):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=epsilon)

    return _row_norm("rms_norm", normalise, input_tensor, weight, bias, residual_input_tensor, memory_config)


def dit_fused_distributed_rmsnorm(
    input_tensor: Tensor,
    cluster_axis: int | None,
    mesh_device: MeshDevice,
    multi_device_global_semaphore: Sequence,
    *,
    epsilon: float = 1e-5,
    num_heads_per_device: int = 1,
    per_head_norm: bool = False,
    weight: Tensor | None = None,
    transformation_mat: Tensor | None = None,
    rope_cos: Tensor | None = None,
    rope_sin: Tensor | None = None,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """RMS norm, split into heads and RoPE in one operation: ``[1, 1, S, H * D]`` to ``[1, H, S, D]``.

    ``ttnn.experimental.dit_fused_distributed_rmsnorm`` on one chip (``cluster_axis`` None). With ``per_head_norm`` each
    head is normalised by itself, else the whole row. ``weight`` ``[1, H * D]``; cos and sin ``[1, 1, S, D]`` in bf16 or
    fp32; ``transformation_mat`` ``[1, 1, 32, 32]`` turns each 32 columns. Between the steps values stay in fp32, and
    the multipliers take them as TF32. Raises RuntimeError for other shapes and dtypes.
    """
    op, x, heads = "dit_fused_distributed_rmsnorm", input_tensor, num_heads_per_device
    rope = {"transformation_mat": transformation_mat, "rope_cos": rope_cos, "rope_sin": rope_sin}
    check(cluster_axis is None, op, "only one chip is emulated: cluster_axis must be None")
    check_operands(op, input_tensor=x, weight=weight, **rope)
    check_layout(op, Layout.TILE, input_tensor=x, weight=weight, **rope)
    check_dtype(op, [DataType.BFLOAT16], input_tensor=x, weight=weight, transformation_mat=transformation_mat)
    check_dtype(op, [DataType.BFLOAT16, DataType.FLOAT32], rope_cos=rope_cos, rope_sin=rope_sin)
    check(len(x.shape) == 4 and x.shape[:2] == (1, 1), op, f"the input must be [1, 1, S, width], got {describe(x)}")
    rows, width = x.shape[2:]
    whole = width % heads == 0 and width // heads % TILE_SIZE == 0
    check(whole, op, f"{describe(x)} does not divide into {heads} heads of whole tiles")
    size = width // heads
    given = [tensor for tensor in rope.values() if tensor is not None]
    check(len(given) in (0, 3), op, "transformation_mat, rope_cos and rope_sin go together")
    if given:
        fits = rope_cos.shape == rope_sin.shape == (1, 1, rows, size)
        check(fits, op, f"cos and sin must be [1, 1, {rows}, {size}], got {describe(rope_cos)}, {describe(rope_sin)}")
        square = transformation_mat.shape == (1, 1, TILE_SIZE, TILE_SIZE)
        check(square, op, f"transformation_mat must be [1, 1, 32, 32], got {describe(transformation_mat)}")
        turn = transformation_mat.values.view(TILE_SIZE, TILE_SIZE).float()
    fidelity = (compute_kernel_config or ACCURATE).math_fidelity

    def multiply(a, b):  # eltwise, operand 0 goes where a matrix product's in1 does
        pairs = multiplier_operands(as_multiplied(b), as_multiplied(a), fidelity)
        return sum(left * right for left, right in pairs)

    def compute(values, *tables):  # [rows, heads, size] and [rows, 1, size]
        over = (2,) if per_head_norm else (1, 2)
        y = multiply(values, values.square().mean(over, keepdim=True).add_(epsilon).rsqrt_())
        if weight is not None:
            y = multiply(y, weight.values.view(heads, size).float())
        if not tables:
            return y
        turned = (as_multiplied(y).view(-1, TILE_SIZE) @ turn).view(y.shape)
        return multiply(y, tables[0]) + multiply(turned, tables[1])

    tables = [table.values.view(rows, 1, size) for table in given[1:]]
    dtype = dtype or x.dtype
    values = chunked(compute, dtype, (rows, heads, size), x.values.view(rows, heads, size), *tables)
    return device_tensor(values.transpose(0, 1).unsqueeze(0), x, dtype=dtype, memory_config=memory_config)


def _row_norm(op, normalise, x, weight, bias, residual, memory_config):
    check_operands(op, input_tensor=x, weight=weight, bias=bias, residual_input_tensor=residual)
    check_layout(op, Layout.TILE, input_tensor=x, residual_input_tensor=residual)
    check_dtype(op, _NORMALISED, input_tensor=x, residual_input_tensor=residual)
    check_dtype(op, FLOATS, weight=weight, bias=bias)
    if residual is not None:
        check(
            residual.shape == x.shape, op, f"input {describe(x)} and residual {describe(residual)} must have one shape"
        )
    optional = {"weight": weight, "bias": bias, "residual": residual}
    operands = {"weight": _affine(op, "weight", x, weight), "bias": _affine(op, "bias", x, bias)}
    operands["residual"] = None if residual is None else residual.values
    given = [name for name in optional if operands[name] is not None]

    def compute(values, *others):
        parts = dict(zip(given, others))
        if "residual" in parts:
            values += parts["residual"]
        result = normalise(values)
        if "weight" in parts:
            result *= parts["weight"]
        if "bias" in parts:
            result += parts["bias"]
        return result

    values = chunked(compute, x.dtype, x.shape, x.values, *(operands[name] for name in given))
    return device_tensor(values, x, memory_config=memory_config)


def _affine(op, name, x, parameter):
    """A weight or bias as ``[W]`` values."""
    if parameter is None:
        return None
    width, values = x.shape[-1], parameter.values
    if parameter.layout is Layout.ROW_MAJOR:
        sticks = values.shape[-1] == TILE_SIZE
        check(sticks, op, f"a row-major {name} must be [1, 1, {width} / 32, 32], got {describe(parameter)}")
    # TT-NN reads the first row whatever else is there, so several rows cannot be meant.
    check(values.numel() == width, op, f"{name} must be one row of {width}, got {describe(parameter)}")
    return values.reshape(width)


def softmax(
    input_tensor: Tensor,
    dim: int = -1,
    *,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    numeric_stable: bool = True,
) -> Tensor:
    """Softmax along ``dim``, in tiles. ``numeric_stable`` subtracts the maximum first; without it exp may overflow."""
    op, rank = "softmax", len(input_tensor.shape)
    check_operands(op, input_tensor=input_tensor)
    check_dtype(op, FLOATS, input_tensor=input_tensor)
    check(-rank <= dim < rank, op, f"dimension out of range [-{rank}, {rank - 1}]: {dim} for {describe(input_tensor)}")

    def compute(x):
        if numeric_stable:
            return torch.softmax(x, -1)
        exponentials = x.exp_()
        return exponentials.div_(exponentials.sum(-1, keepdim=True))

    rows = input_tensor.values.transpose(dim, -1)
    values = chunked(compute, input_tensor.dtype, rows.shape, rows).transpose(dim, -1)
    return device_tensor(values, input_tensor, layout=Layout.TILE, memory_config=memory_config)


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
    False or None. Raises RuntimeError for other shapes, dtypes and layouts.
    """
    op, x = "group_norm", input_tensor
    check_operands(op, input_tensor=x, weight=weight, bias=bias, input_mask=input_mask)
    check_layout(op, Layout.TILE, input_tensor=x, input_mask=input_mask)
    check_layout(op, Layout.ROW_MAJOR, weight=weight, bias=bias)
    check(not inplace, op, "in-place operation is not supported for tiles")
    check_dtype(op, (DataType.BFLOAT16, DataType.FLOAT32), input_tensor=x)
    check(dtype in (None, x.dtype), op, f"the output dtype must be the input's, {x.dtype.name}, got {dtype}")
    check(len(x.shape) == 4 and x.shape[1] == 1, op, f"the input must be [N, 1, H * W, C], got {describe(x)}")
    channels = x.shape[-1]
    check(channels % num_groups == 0, op, f"{channels} channels are not divisible into {num_groups} groups")
    check(channels % TILE_SIZE == 0, op, f"{channels} channels are not whole tiles")
    blocked_alone = core_grid is None and num_out_blocks is not None
    check(not blocked_alone, op, "num_out_blocks cannot be given without a core_grid")
    masked = input_mask is None or input_mask.shape[1] == num_groups
    check(masked, op, f"the mask must have {num_groups} groups, got {input_mask and describe(input_mask)}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        fits = parameter is None or parameter.values.numel() == channels and parameter.shape[-1] == TILE_SIZE
        check(fits, op, f"{name} must be [1, 1, {channels} / 32, 32], got {parameter and describe(parameter)}")
    scale = 1.0 if weight is None else weight.values.reshape(channels).float()
    shift = 0.0 if bias is None else bias.values.reshape(channels).float()
    result = torch.empty_like(x.values)
    for image, out in zip(x.values.flatten(0, 1), result.flatten(0, 1)):
        _group_norm_image(image, out, num_groups, epsilon, scale, shift, x.dtype)
    return device_tensor(result, x, layout=output_layout, memory_config=memory_config)


def _group_norm_image(image, out, groups, epsilon, scale, shift, dtype):
    """``image[H * W, C]`` normalised into ``out``, in pieces: mean, then variance about it, then the result."""
    step = max(1, CHUNK_ELEMENTS // image.shape[1])
    size = image.shape[1] // groups

    def group_mean(channel_sums):
        return (channel_sums.view(groups, size).sum(1) / (image.shape[0] * size)).repeat_interleave(size)

    mean = group_mean(sum(rows.float().sum(0) for rows in image.split(step)))
    variance = group_mean(sum(rows.float().sub_(mean).square_().sum(0) for rows in image.split(step)))
    scale = scale * torch.rsqrt(variance + epsilon)
    for rows, target in zip(image.split(step), out.split(step)):
        target.copy_(pack(rows.float().sub_(mean).mul_(scale).add_(shift), dtype))
