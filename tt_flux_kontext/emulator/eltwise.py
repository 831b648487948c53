"""Elementwise operations and the activations that other operations fuse.

fp32 tensors, activations and ``addcmul`` go through the vector unit: computed in fp32, rounded once. Sums and
differences of narrower tensors go through the matrix unit, which aligns the smaller operand first.
"""

import math

import torch

from .checks import check, check_dtype, check_layout, check_operands, describe
from .formats import CHUNK_ELEMENTS, leading_power, pack, storage_dtype
from .tensor import Tensor, device_tensor
from .types import DataType, GeluVariant, Layout, MemoryConfig, UnaryOpType, UnaryWithParam

FLOATS = (DataType.BFLOAT16, DataType.FLOAT32, DataType.BFLOAT8_B, DataType.BFLOAT4_B)

ACTIVATIONS = {
    UnaryOpType.GELU: torch.nn.functional.gelu,
    UnaryOpType.GELU_TANH: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    UnaryOpType.SILU: lambda x: torch.nn.functional.silu(x, inplace=True),
    UnaryOpType.SIGMOID: torch.sigmoid_,
    UnaryOpType.TANH: torch.tanh_,
    UnaryOpType.RELU: torch.relu_,
}
"""fp32 in, fp32 out; the input may be overwritten. The chip's table-driven GELU is computed exactly."""

_NAMED = {op.name.lower(): op for op in UnaryOpType} | {"gelu_approx": UnaryOpType.GELU}


def activation_of(op: str, activation):
    """The function behind an activation given as a name, a UnaryOpType or a UnaryWithParam.

    Raises RuntimeError for a name that is unknown.
    """
    if isinstance(activation, str):
        check(activation in _NAMED, op, f"unknown unary op: {activation}")
        activation = _NAMED[activation]
    if not isinstance(activation, UnaryWithParam):
        activation = UnaryWithParam(activation)
    return ACTIVATIONS[activation.op_type]


def chunked(compute, dtype: DataType, shape, *operands: torch.Tensor) -> torch.Tensor:
    """``pack(compute(*operands))`` piece by piece, operands broadcast to ``shape`` and given to ``compute`` in fp32.

    The pieces keep fp32 temporaries in the cache. ``compute`` owns its arguments and returns a tensor of its own.
    """
    shape = tuple(shape)
    result = torch.empty(shape, dtype=storage_dtype(dtype), device=operands[0].device)
    # Cut along the longest dimension but the last, which block floats need whole.
    axis = max(range(len(shape) - 1), key=shape.__getitem__, default=None)
    if axis is None:
        return result.copy_(pack(compute(*(_fp32(operand) for operand in operands)), dtype))
    aligned = [operand.reshape((1,) * (len(shape) - operand.dim()) + operand.shape) for operand in operands]
    step = max(1, CHUNK_ELEMENTS * shape[axis] // max(1, math.prod(shape)))
    for start in range(0, shape[axis], step):
        length = min(step, shape[axis] - start)
        pieces = [x if x.shape[axis] == 1 else x.narrow(axis, start, length) for x in aligned]
        result.narrow(axis, start, length).copy_(pack(compute(*map(_fp32, pieces)), dtype))
    return result


def _fp32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float32, copy=True)


def _broadcast(op: str, *tensors: Tensor):
    try:
        return torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except RuntimeError:
        shapes = ", ".join(describe(tensor) for tensor in tensors)
        raise RuntimeError(f"TT_FATAL: {op}: broadcasting rule violation between {shapes}") from None


def aligned_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The matrix unit's sum of fp32 tensors.

    Both operands are put on a grid 10 bits below the larger one's leading bit, ties away from zero, and added exactly.
    """
    grid = torch.maximum(leading_power(a), leading_power(b)).mul_(2.0**-10)
    grid.clamp_(torch.finfo(torch.float32).tiny, 2.0**100)  # zeros and infinities divided by it stay what they are
    half = torch.tensor(0.5, device=a.device)

    def steps(operand):
        exact = operand / grid
        return exact.add_(torch.copysign(half, exact)).trunc_()

    return steps(a).add_(steps(b)).mul_(grid)


def _binary(op, compute, a, b, dtype, memory_config, activations, a_activations, b_activations):
    if not isinstance(a, Tensor):
        raise TypeError(f"{op}(): input_tensor_a must be a ttnn.Tensor, got {type(a).__name__}")
    scalar = not isinstance(b, Tensor)
    check_operands(op, input_tensor_a=a, input_tensor_b=None if scalar else b)
    check_dtype(op, FLOATS, input_tensor_a=a, input_tensor_b=None if scalar else b)
    if scalar:
        # A scalar is broadcast as a tile of the tensor's format.
        other = torch.tensor(float(b), dtype=storage_dtype(a.dtype), device=a.values.device)
        shape = a.shape
    else:
        check(a.layout is b.layout, op, f"mixed layouts: {a.layout} and {b.layout}")
        other, shape = b.values, _broadcast(op, a, b)
    if any(isinstance(activation, str) for activation in (*activations, *a_activations, *b_activations)):
        raise TypeError(f"{op}(): activations must be UnaryWithParam, got a name")
    before_a = [activation_of(op, activation) for activation in a_activations]
    before_b = [activation_of(op, activation) for activation in b_activations]
    after = [activation_of(op, activation) for activation in activations]
    on_vector_unit = DataType.FLOAT32 in (a.dtype, a.dtype if scalar else b.dtype)

    def whole(x, y):
        for function in before_a:
            x = function(x)
        for function in before_b:
            y = function(y)
        x = compute(x, y, on_vector_unit)
        for function in after:
            x = function(x)
        return x

    dtype = dtype or a.dtype
    values = chunked(whole, dtype, shape, a.values, other)
    return device_tensor(values, a, dtype=dtype, memory_config=memory_config or a.memory_config())


def add(
    input_tensor_a: Tensor,
    input_tensor_b,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    activations=(),
    input_tensor_a_activations=(),
    input_tensor_b_activations=(),
) -> Tensor:
    """``a + b``; ``b`` a tensor or a number, broadcast over dimensions of size 1. dtype and memory default to a's.

    The activations (UnaryWithParam) are applied to the operands before and to the result after.
    Raises RuntimeError for operands that do not broadcast, mixed layouts and integers.
    """

    def compute(x, y, on_vector_unit):
        return x + y if on_vector_unit else aligned_sum(x, y)

    acts = (activations, input_tensor_a_activations, input_tensor_b_activations)
    return _binary("add", compute, input_tensor_a, input_tensor_b, dtype, memory_config, *acts)


def subtract(
    input_tensor_a: Tensor,
    input_tensor_b,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    activations=(),
    input_tensor_a_activations=(),
    input_tensor_b_activations=(),
) -> Tensor:
    """``a - b``; see ``add``."""

    def compute(x, y, on_vector_unit):
        return x - y if on_vector_unit else aligned_sum(x, -y)

    acts = (activations, input_tensor_a_activations, input_tensor_b_activations)
    return _binary("subtract", compute, input_tensor_a, input_tensor_b, dtype, memory_config, *acts)


def multiply(
    input_tensor_a: Tensor,
    input_tensor_b,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    activations=(),
    input_tensor_a_activations=(),
    input_tensor_b_activations=(),
) -> Tensor:
    """``a * b`` at full fidelity; see ``add``."""

    def compute(x, y, on_vector_unit):
        return x * y

    acts = (activations, input_tensor_a_activations, input_tensor_b_activations)
    return _binary("multiply", compute, input_tensor_a, input_tensor_b, dtype, memory_config, *acts)


mul = multiply


def addcmul(
    input_a: Tensor,
    input_b: Tensor,
    input_c: Tensor,
    *,
    value: float = 1.0,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """``a + value * b * c`` in tiles of one common dtype, broadcast over dimensions of size 1."""
    op = "addcmul"
    operands = {"input_a": input_a, "input_b": input_b, "input_c": input_c}
    check_operands(op, **operands)
    check_layout(op, Layout.TILE, **operands)
    names = [tensor.dtype.name for tensor in operands.values()]
    check(len(set(names)) == 1, op, f"all inputs must have the same dtype, got {', '.join(names)}")
    shape = _broadcast(op, *operands.values())
    values = chunked(
        lambda a, b, c: torch.addcmul(a, b, c, value=value),
        input_a.dtype,
        shape,
        *(tensor.values for tensor in operands.values()),
    )
    return device_tensor(values, input_a, memory_config=memory_config or input_a.memory_config())


def _unary(op, function, tensor, memory_config):
    check_operands(op, input_tensor=tensor)
    check_dtype(op, FLOATS, input_tensor=tensor)
    values = chunked(function, tensor.dtype, tensor.shape, tensor.values)
    return device_tensor(values, tensor, memory_config=memory_config or tensor.memory_config())


def silu(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``x * sigmoid(x)``"""
    return _unary("silu", ACTIVATIONS[UnaryOpType.SILU], input_tensor, memory_config)


def sigmoid(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``1 / (1 + exp(-x))``"""
    return _unary("sigmoid", ACTIVATIONS[UnaryOpType.SIGMOID], input_tensor, memory_config)


def tanh(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """Hyperbolic tangent."""
    return _unary("tanh", ACTIVATIONS[UnaryOpType.TANH], input_tensor, memory_config)


def relu(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``max(x, 0)``"""
    return _unary("relu", ACTIVATIONS[UnaryOpType.RELU], input_tensor, memory_config)


def gelu(
    input_tensor: Tensor,
    *,
    variant: GeluVariant = GeluVariant.Accurate,
    fast_and_approximate_mode: bool = False,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """GELU, exact or by tanh. The table-driven variant (FastLut, ``fast_and_approximate_mode``) is computed exactly."""
    op = UnaryOpType.GELU_TANH if variant is GeluVariant.Tanh and not fast_and_approximate_mode else UnaryOpType.GELU
    return _unary("gelu", ACTIVATIONS[op], input_tensor, memory_config)
