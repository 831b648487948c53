"""The fused head norm: RMS norm, split into heads and RoPE, on one chip."""

from collections.abc import Sequence

from . import matrix_unit
from .checks import check, check_dtype, check_layout, check_operands, describe
from .device import MeshDevice
from .eltwise import chunked
from .formats import as_multiplied, multiplier_operands
from .gemm import ACCURATE
from .matrix_unit import multiply
from .mesh import per_chip
from .tensor import Tensor, device_tensor
from .types import TILE_SIZE, DataType, Layout, MemoryConfig, WormholeComputeKernelConfig

_BLOCK_TILES = 4
"""Tiles of a row that the kernel's steps wait for: what the destination registers hold in fp32."""


@per_chip
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
    fp32; ``transformation_mat`` ``[1, 1, 32, 32]`` turns each 32 columns. Raises RuntimeError for other shapes and
    dtypes, for one head by itself, and where TT-NN's kernel waits for ever (heads of other than whole fours of tiles,
    each by itself) or turns rows by the wrong angles (RoPE on more than one tile of rows, the last not full).
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
    size, tiles = width // heads, width // TILE_SIZE
    given = [tensor for tensor in rope.values() if tensor is not None]
    check(len(given) in (0, 3), op, "transformation_mat, rope_cos and rope_sin go together")
    if given:
        fits = rope_cos.shape == rope_sin.shape == (1, 1, rows, size)
        check(fits, op, f"cos and sin must be [1, 1, {rows}, {size}], got {describe(rope_cos)}, {describe(rope_sin)}")
        square = transformation_mat.shape == (1, 1, TILE_SIZE, TILE_SIZE)
        check(square, op, f"transformation_mat must be [1, 1, 32, 32], got {describe(transformation_mat)}")
    check(not per_head_norm or heads > 1, op, f"norms two heads or more by themselves, got {heads}")
    config = compute_kernel_config or ACCURATE
    check(config.fp32_dest_acc_en, op, "requires fp32_dest_acc_en=true in the compute kernel config")
    # TT-NN takes these calls.
    check(
        not per_head_norm or tiles % _BLOCK_TILES == 0,
        op,
        f"would hang: heads are handed over tile by tile, but waited for by fours, and {tiles} tiles "
        f"({heads} heads of {size}) are no multiple of 4",
    )
    check(
        not given or rows <= TILE_SIZE or rows % TILE_SIZE == 0,
        op,
        f"would be wrong: tiles of cos and sin are counted modulo the {rows // TILE_SIZE} full ones, so that the "
        f"last {rows % TILE_SIZE} of {rows} rows would be turned like the first",
    )
    matrix = None if transformation_mat is None else transformation_mat.values.view(TILE_SIZE, TILE_SIZE)
    scale = None if weight is None else weight.values.view(heads, size).float()

    def compute(values, *tables):
        return _normed_and_turned(values, per_head_norm, epsilon, scale, matrix, tables, config.math_fidelity)

    operands = [x.values.view(rows, heads, size), *(table.values.view(rows, 1, size) for table in given[1:])]
    dtype = dtype or x.dtype
    values = chunked(compute, dtype, (rows, heads, size), *operands)
    return device_tensor(values.transpose(0, 1).unsqueeze(0), x, dtype=dtype, memory_config=memory_config)


def _normed_and_turned(x, per_head, epsilon, weight, matrix, tables, fidelity):
    """What the kernel makes of fp32 values ``x[rows, heads, size]``.

    ``weight[heads, size]``; ``tables``: cos and sin ``[rows, 1, size]``, with a ``matrix``. Between the
    steps values are fp32 in L1, and come back to the matrix unit as TF32.
    """
    squares = multiply(x, x, fidelity).unflatten(-1, (-1, TILE_SIZE)).sum(-2)  # tiles are added up in L1
    totals = squares if per_head else squares.sum(1, keepdim=True)
    means = as_multiplied(matrix_unit.row_sums(totals, fidelity)).mul_(totals.shape[1] / x[0].numel())
    y = multiply(x, means.add_(epsilon).rsqrt_(), fidelity)
    if weight is not None:
        y = multiply(y, weight, fidelity)
    if matrix is None:
        return y
    cos, sin = tables
    operands = multiplier_operands(as_multiplied(y).view(-1, TILE_SIZE), matrix.float(), fidelity)
    turned = sum(left @ right for left, right in operands).view(y.shape)
    return multiply(y, cos, fidelity).add_(multiply(turned, sin, fidelity))
