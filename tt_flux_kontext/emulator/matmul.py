"""Matrix multiplication: ``matmul``, ``linear`` and the fused forms of ``experimental``."""

from collections.abc import Sequence

import torch

from .checks import check, check_dtype, check_layout, check_operands, describe
from .eltwise import FLOATS, activation_of
from .formats import aligned_sum, as_multiplied, multiplier_phases, storage_dtype
from .gemm import ACCURATE, copied, gemm
from .mesh import per_chip
from .tensor import Tensor, device_tensor
from .types import (
    TILE_SIZE,
    CoreGrid,
    DataType,
    Layout,
    MathFidelity,
    MemoryConfig,
    MinimalMatmulConfig,
    WormholeComputeKernelConfig,
)


@per_chip
def matmul(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config=None,
    activation=None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    core_grid: CoreGrid | None = None,
) -> Tensor:
    """``activation(a[..., M, K] @ b[..., K, N])``; dtype defaults to a's.

    Batch dimensions must agree, or be all of size 1 in one operand. ``program_config`` and ``core_grid`` choose a
    blocking: they matter here only for the default fidelity. Raises RuntimeError for inner dimensions or batches that
    do not match, row-major operands and integers.
    """
    return _matmul(
        "matmul", input_tensor_a, input_tensor_b, None, transpose_a, transpose_b, memory_config, dtype,
        program_config, activation, compute_kernel_config, core_grid,
    )  # fmt: skip


@per_chip
def linear(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    *,
    bias: Tensor | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config=None,
    activation=None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    core_grid: CoreGrid | None = None,
) -> Tensor:
    """``activation(a[..., M, K] @ b[..., K, N] + bias[..., 1 or M, N])``; see ``matmul``."""
    return _matmul(
        "linear", input_tensor_a, input_tensor_b, bias, transpose_a, transpose_b, memory_config, dtype,
        program_config, activation, compute_kernel_config, core_grid,
    )  # fmt: skip


def _matmul(
    op, a, b, bias, transpose_a, transpose_b, memory_config, dtype, program_config, activation, config, core_grid
):
    _check_matmul_operands(op, a, b, bias)
    left = a.values.mT if transpose_a else a.values
    right = b.values.mT if transpose_b else b.values
    shapes = f"{describe(a)} @ {describe(b)}"
    check(
        left.shape[-1] == right.shape[-2],
        op,
        f"inner dimensions differ: {left.shape[-1]} and {right.shape[-2]} in {shapes}",
    )
    if core_grid is not None:
        grid = a.device().compute_with_storage_grid_size()
        fits = core_grid.x <= grid.x and core_grid.y <= grid.y
        check(fits, op, f"core_grid {core_grid} is larger than the device's {grid.x}x{grid.y}")
    if config is None:
        config = _default_config(a, b, program_config is not None or core_grid is not None)
    rows = _bias_rows(op, bias, left.shape[-2], right.shape[-1])
    function = None if activation is None else activation_of(op, activation)
    dtype = dtype or a.dtype
    left_batch, right_batch = left.shape[:-2], right.shape[:-2]
    if right_batch.numel() == 1:
        shape = (*left_batch, left.shape[-2], right.shape[-1])
        if bias is not None and bias.values.numel() > right.shape[-1]:
            check(
                left_batch.numel() == 1,
                op,
                f"a bias of several rows {describe(bias)} needs a batch of 1, got {describe(a)}",
            )
        flat = left.reshape(-1, left.shape[-1])
        out = gemm(flat, right.reshape(right.shape[-2:]), config, dtype, rows, activation=function).view(shape)
    else:
        check(left_batch == right_batch or left_batch.numel() == 1, op, f"batch dimensions differ in {shapes}")
        shape = (*right_batch, left.shape[-2], right.shape[-1])
        out = torch.empty(shape, dtype=storage_dtype(dtype), device=left.device)
        lefts = left.expand(*right_batch, *left.shape[-2:]).flatten(0, -3)
        for *pair, part in zip(lefts, right.flatten(0, -3), out.flatten(0, -3)):
            part.copy_(gemm(*pair, config, dtype, rows, activation=function))
    return device_tensor(out, a, dtype=dtype, memory_config=memory_config)


@per_chip
def minimal_matmul(
    input_tensor: Tensor | Sequence[Tensor],
    weight_tensor: Tensor,
    *,
    bias_tensor: Tensor | None = None,
    fused_activation=None,
    config: MinimalMatmulConfig | None = None,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """``activation(input[..., M, K] @ weight[K, N] + bias[1, N])``, ``ttnn.experimental.minimal_matmul``.

    Two inputs stand for their concatenation along K, where the weight's rows for each fill whole tiles.
    """
    parts = [input_tensor] if isinstance(input_tensor, Tensor) else list(input_tensor)
    out = _minimal("minimal_matmul", parts, weight_tensor, bias_tensor, fused_activation, dtype, compute_kernel_config)
    return device_tensor(out, parts[0], dtype=dtype, memory_config=memory_config)


@per_chip
def minimal_matmul_split(
    input_tensor: Tensor,
    weight_tensor: Tensor,
    *,
    chunks: int = 3,
    dim: int = -1,
    bias_tensor: Tensor | None = None,
    fused_activation=None,
    config: MinimalMatmulConfig | None = None,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> list[Tensor]:
    """``minimal_matmul`` whose result ``[..., M, N]`` comes as ``chunks`` tensors ``[..., M, N / chunks]``.

    ``ttnn.experimental.minimal_matmul_split``. Raises RuntimeError where a chunk would not be whole tiles.
    """
    op, width = "minimal_matmul_split", weight_tensor.shape[-1]
    check(dim == -1, op, f"only dim=-1 is supported, got {dim}")
    whole = chunks > 0 and width % chunks == 0 and width // chunks % TILE_SIZE == 0
    check(whole, op, f"N = {width} does not divide into {chunks} chunks of whole tiles")
    out = _minimal(op, [input_tensor], weight_tensor, bias_tensor, fused_activation, dtype, compute_kernel_config)
    return [
        device_tensor(part, input_tensor, dtype=dtype, memory_config=memory_config) for part in out.chunk(chunks, -1)
    ]


@per_chip
def dit_minimal_matmul_addcmul_fused(
    matmul_input_tensor: Tensor,
    matmul_weight_tensor: Tensor,
    scalar: float,
    addcmul_input_tensor1: Tensor,
    addcmul_input_tensor2: Tensor,
    bias_tensor: Tensor | None = None,
    *,
    config: MinimalMatmulConfig | None = None,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """``input1[..., M, N] + scalar * (input[..., M, K] @ weight[K, N] + bias[1, N]) * input2[..., 1 or M, N]``.

    ``ttnn.experimental.dit_minimal_matmul_addcmul_fused``: a gated residual in one operation. The residual must be
    stored like the weight (tiles of equal bytes), else RuntimeError.
    """
    op = "dit_minimal_matmul_addcmul_fused"
    residual, gate = addcmul_input_tensor1, addcmul_input_tensor2
    check_operands(
        op, matmul_input_tensor=matmul_input_tensor, addcmul_input_tensor1=residual, addcmul_input_tensor2=gate
    )
    check_layout(op, Layout.TILE, addcmul_input_tensor1=residual, addcmul_input_tensor2=gate)
    weight = matmul_weight_tensor
    rows, width = matmul_input_tensor.values.shape[-2], weight.shape[-1]
    check(
        residual.shape[-2:] == (rows, width),
        op,
        f"addcmul_input_tensor1 must be [{rows}, {width}], got {describe(residual)}",
    )
    gate_fits = gate.shape[-1] == width and gate.shape[-2] in (1, rows)
    check(gate_fits, op, f"addcmul_input_tensor2 must be [1 or {rows}, {width}], got {describe(gate)}")
    check(
        residual.dtype.tile_bytes == weight.dtype.tile_bytes,
        op,
        f"tiles of addcmul_input_tensor1 and of the weight must have equal bytes, "
        f"got {residual.dtype.name} and {weight.dtype.name}",
    )
    base, factor = residual.values.reshape(-1, width), gate.values.reshape(-1, width)
    check(
        base.shape[0] == matmul_input_tensor.values[..., 0].numel() and factor.shape[0] in (1, base.shape[0]),
        op,
        f"batches differ: {describe(matmul_input_tensor)}, {describe(residual)}, {describe(gate)}",
    )

    fidelity = (compute_kernel_config or ACCURATE).math_fidelity

    def add_gated(tile, rows, columns):
        gates = factor[rows if factor.shape[0] > 1 else slice(0, 1), columns].to(torch.float32)
        if gate.dtype is not DataType.FLOAT32:  # the matrix unit's product, with the tile where a weight would be
            tile = sum(x * y for x, y in multiplier_phases(gates, as_multiplied(tile), fidelity))
        else:
            tile = tile * gates
        return aligned_sum(tile.mul_(scalar), base[rows, columns].to(torch.float32))

    out = _minimal(op, [matmul_input_tensor], weight, bias_tensor, None, dtype, compute_kernel_config, add_gated)
    return device_tensor(out, matmul_input_tensor, dtype=dtype, memory_config=memory_config)


def _minimal(op, parts, weight, bias, activation, dtype, config, last=None) -> torch.Tensor:
    check(1 <= len(parts) <= 2, op, f"one or two inputs, got {len(parts)}")
    for part in parts:
        _check_matmul_operands(op, part, weight, bias)
    x = parts[0]
    if len(parts) == 2:
        alike = x.shape[:-1] == parts[1].shape[:-1] and x.dtype is parts[1].dtype
        check(alike, op, f"inputs must differ in K alone, got {describe(x)} and {describe(parts[1])}")
        check(x.shape[-1] % TILE_SIZE == 0, op, f"the first input must be whole tiles wide, got {describe(x)}")
    if isinstance(activation, str):
        raise TypeError(f"{op}(): fused_activation must be a UnaryWithParam, got a name")
    check(weight.values.shape[:-2].numel() == 1, op, f"the weight must have 1 in all dims < -2, got {describe(weight)}")
    inner, width = weight.shape[-2:]
    given = sum(part.shape[-1] for part in parts)
    check(given == inner, op, f"inner dimensions must match, got K={given} and K_w={inner}")
    if bias is not None:
        one_row = bias.values.numel() == bias.shape[-1] == width
        check(one_row, op, f"the bias must be one row of N = {width}, got {describe(bias)}")
    dtype = dtype or x.dtype
    values = x.values if len(parts) == 1 else torch.cat([part.values for part in parts], -1)
    function = None if activation is None else activation_of(op, activation)
    # Without a bias the product comes to what follows as it is copied.
    if bias is None and last is None and (function or dtype is DataType.FLOAT32):
        last = copied
    out = gemm(
        values.reshape(-1, inner),
        weight.values.reshape(inner, width),
        config or ACCURATE,
        dtype,
        _bias_rows(op, bias, x.shape[-2], width),
        last,
        function,
    )
    return out.view(*x.shape[:-1], width)


def _check_matmul_operands(op, a, b, bias):
    check_operands(op, input_tensor_a=a, input_tensor_b=b, bias=bias)
    check_layout(op, Layout.TILE, input_tensor_a=a, input_tensor_b=b)
    check_dtype(op, FLOATS, input_tensor_a=a, input_tensor_b=b, bias=bias)
    enough = len(a.shape) >= 2 and len(b.shape) >= 2
    check(enough, op, f"operands need at least 2 dimensions, got {describe(a)} and {describe(b)}")


def _default_config(a, b, blocked: bool) -> WormholeComputeKernelConfig:
    """TT-NN's own choice: sums in bf16 unless both operands are fp32, HiFi2 at best otherwise."""
    if a.dtype is b.dtype is DataType.FLOAT32:
        return ACCURATE
    low = blocked or (a.dtype.is_block_float and b.dtype.is_block_float)
    fidelity = MathFidelity.LoFi if low else MathFidelity.HiFi2
    return WormholeComputeKernelConfig(math_fidelity=fidelity, packer_l1_acc=True)


def _bias_rows(op, bias, rows, width) -> torch.Tensor | None:
    """The values of a bias: one row, or all ``rows``."""
    if bias is None:
        return None
    lines = bias.values.numel() // max(1, bias.shape[-1])
    fits = bias.shape[-1] == width and lines in (1, rows)
    check(fits, op, f"the bias must be [1 or {rows}, {width}], got {describe(bias)}")
    return bias.values.reshape(lines, width)
