"""Norms over rows and softmax, step by step as TT-NN's kernels for Wormhole compute them.

Between the steps values lie in fp32 in L1, and come back to the matrix unit as TF32 (``matrix_unit``); what the vector
unit does (means, roots, exponentials, reciprocals) is fp32. The result is rounded once, when it is packed.
"""

import math

import torch

from . import matrix_unit
from .checks import check, check_dtype, check_layout, check_operands, describe
from .eltwise import FLOATS, chunked
from .formats import aligned_sum, as_multiplied
from .gemm import ACCURATE
from .matrix_unit import multiply
from .mesh import per_chip
from .tensor import Tensor, device_tensor
from .types import TILE_SIZE, DataType, Layout, MemoryConfig, WormholeComputeKernelConfig

_NORMALISED = (DataType.BFLOAT16, DataType.FLOAT32, DataType.BFLOAT8_B)
_ROW_BYTES = 1_280_000
"""Of L1, for a row of tiles. An estimate: 192 columns with weight and bias fit, 3072 don't."""
_LEAST = -(2.0**100)
"""Below it softmax's operand is as good as infinite, and differences with it need not overflow."""


@per_chip
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
    other shapes (TT-NN ignores all rows but the first), dtypes and layouts, and for a program config.
    """
    op, config = "layer_norm", _config("layer_norm", program_config, compute_kernel_config)
    by_vector_unit = _row_bytes(input_tensor, weight, bias) > _ROW_BYTES

    def normalise(x):
        """The mean is subtracted as TF32."""
        width = x.shape[-1]
        mean = matrix_unit.row_sums(x, config.math_fidelity, rounded=False).mul_(1 / width)
        x = aligned_sum(x, -mean)
        # A row that doesn't fit into L1 is read again, and squared without a detour through L1.
        squares = x * x if by_vector_unit else multiply(x, x, config.math_fidelity)
        return _normalised(x, squares, epsilon, config.math_fidelity)

    operands = (input_tensor, weight, bias, residual_input_tensor)
    return _row_norm(op, normalise, *operands, config.math_fidelity, memory_config)


@per_chip
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
    op, config = "rms_norm", _config("rms_norm", program_config, compute_kernel_config)

    def normalise(x):
        return _normalised(x, multiply(x, x, config.math_fidelity), epsilon, config.math_fidelity)

    operands = (input_tensor, weight, bias, residual_input_tensor)
    return _row_norm(op, normalise, *operands, config.math_fidelity, memory_config)


def _config(op, program_config, compute_kernel_config):
    check(program_config is None, op, "program configs are not emulated")
    config = compute_kernel_config or ACCURATE
    check(config.fp32_dest_acc_en, op, "a bfloat16 destination is not emulated: fp32_dest_acc_en must be set")
    return config


def _row_bytes(x, *parameters):
    """Of a row of tiles in L1: the input, its differences from the mean and their squares in fp32, weight and bias."""
    given = [tensor.dtype.tile_bytes for tensor in (x, *parameters) if tensor is not None]
    return math.ceil(x.shape[-1] / TILE_SIZE) * (sum(given) + 2 * DataType.FLOAT32.tile_bytes)


def _normalised(x, squares, epsilon, fidelity):
    variance = matrix_unit.row_sums(squares, fidelity).mul_(1 / x.shape[-1])
    epsilon = torch.tensor(epsilon, dtype=torch.bfloat16, device=x.device).float()
    return multiply(x, aligned_sum(variance, epsilon).rsqrt_(), fidelity)


def _row_norm(op, normalise, x, weight, bias, residual, fidelity, memory_config):
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
            values = aligned_sum(values, parts["residual"])
        result = normalise(values)
        if "weight" in parts:
            result = multiply(result, parts["weight"], fidelity)
        if "bias" in parts:
            result = aligned_sum(result, parts["bias"])
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


@per_chip
def softmax(
    input_tensor: Tensor,
    dim: int = -1,
    *,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    numeric_stable: bool = True,
) -> Tensor:
    """Softmax along ``dim``, in tiles. ``numeric_stable`` subtracts the maximum first; without it exp may overflow.

    The maximum is that of the TF32 values, and so is the difference: 2^-11 of a score, 0.5 % at ten, is its error.
    """
    op, rank = "softmax", len(input_tensor.shape)
    check_operands(op, input_tensor=input_tensor)
    check_dtype(op, FLOATS, input_tensor=input_tensor)
    check(-rank <= dim < rank, op, f"dimension out of range [-{rank}, {rank - 1}]: {dim} for {describe(input_tensor)}")
    fidelity = _config(op, None, compute_kernel_config).math_fidelity

    def compute(x):
        x = as_multiplied(x)
        if numeric_stable:
            x = aligned_sum(x.clamp_(min=_LEAST), -x.amax(-1, keepdim=True))
        exponentials = x.exp_()
        return multiply(exponentials, matrix_unit.row_sums(exponentials, fidelity).reciprocal_(), fidelity)

    rows = input_tensor.values.transpose(dim, -1)
    values = chunked(compute, input_tensor.dtype, rows.shape, rows).transpose(dim, -1)
    return device_tensor(values, input_tensor, layout=Layout.TILE, memory_config=memory_config)
