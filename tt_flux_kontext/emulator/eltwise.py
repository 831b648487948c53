"""Elementwise operations and the activations that other operations fuse.

Where an operand or the result is fp32, so is the destination; else it is bf16. Products, and sums of fp32 tensors, are
the vector unit's: computed in fp32, rounded once. Other sums are the matrix unit's, which aligns the smaller operand
first. ``addcmul`` and all activations are the vector unit's.
"""

import math

import torch

from . import vector_unit
from .checks import check, check_dtype, check_layout, check_operands, describe
from .formats import (
    CHUNK_ELEMENTS,
    aligned_sum,
    as_multiplied,
    keep_significant_bits,
    pack,
    round_to_bf16_,
    storage_dtype,
)
from .mesh import per_chip
from .tensor import Tensor, device_tensor, written
from .types import DataType, GeluVariant, Layout, MemoryConfig, UnaryOpType, UnaryWithParam

FLOATS = (DataType.BFLOAT16, DataType.FLOAT32, DataType.BFLOAT8_B, DataType.BFLOAT4_B)

ACTIVATIONS = {
    UnaryOpType.GELU: vector_unit.gelu,
    UnaryOpType.GELU_TANH: vector_unit.gelu_tanh,
    UnaryOpType.SILU: vector_unit.silu,
    UnaryOpType.SIGMOID: torch.sigmoid_,
    UnaryOpType.TANH: torch.tanh_,
    UnaryOpType.RELU: torch.relu_,
    UnaryOpType.RSQRT: torch.rsqrt_,
}
"""fp32 in, fp32 out; the input may be overwritten."""
TO_BF16 = ACTIVATIONS | {UnaryOpType.SILU: vector_unit.silu_to_bf16, UnaryOpType.SIGMOID: vector_unit.sigmoid_to_bf16}
"""The same for a bf16 destination."""

_PRECISE, _BY_TABLE = 0.0, 1.0  # GELU's parameter; without one it is by the table
_NAMED = {op.name.lower(): UnaryWithParam(op) for op in UnaryOpType} | {
    "gelu": UnaryWithParam(UnaryOpType.GELU, _PRECISE),
    "gelu_approx": UnaryWithParam(UnaryOpType.GELU, _BY_TABLE),
}


def activation_of(op: str, activation, fp32_destination: bool = True):
    """The function behind an activation given as a name, a UnaryOpType or a UnaryWithParam.

    Raises RuntimeError for a name that is unknown.
    """
    if isinstance(activation, str):
        check(activation in _NAMED, op, f"unknown unary op: {activation}")
        activation = _NAMED[activation]
    if not isinstance(activation, UnaryWithParam):
        activation = UnaryWithParam(activation)
    if activation.op_type is UnaryOpType.GELU and activation.params[:1] != [_PRECISE]:
        return vector_unit.gelu_table
    return (ACTIVATIONS if fp32_destination else TO_BF16)[activation.op_type]


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


def _binary(
    op, compute, to_bf16, a, b, dtype, memory_config, activations, a_activations, b_activations, output_tensor=None
):
    if not isinstance(a, Tensor):
        raise TypeError(f"{op}(): input_tensor_a must be a ttnn.Tensor, got {type(a).__name__}")
    scalar = not isinstance(b, Tensor)
    check_operands(op, input_tensor_a=a, input_tensor_b=None if scalar else b, output_tensor=output_tensor)
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
    dtype = dtype or (a if output_tensor is None else output_tensor).dtype
    dtypes = a.dtype, a.dtype if scalar else b.dtype
    fp32_destination = DataType.FLOAT32 in (dtype, *dtypes)
    on_vector_unit = dtypes == (DataType.FLOAT32, DataType.FLOAT32)

    def activated(x, given):
        for activation in given:
            x = activation_of(op, activation, fp32_destination)(x)
            x = x if fp32_destination else round_to_bf16_(x)
        return x

    def whole(x, y):
        x = compute(activated(x, a_activations), activated(y, b_activations), on_vector_unit)
        return activated(x if fp32_destination else to_bf16(x), activations)

    values = chunked(whole, dtype, shape, a.values, other)
    operands = (a,) if scalar else (a, b)
    if output_tensor is not None:
        return written(op, output_tensor, values, dtype, *operands)
    return device_tensor(values, *operands, dtype=dtype, memory_config=memory_config or a.memory_config())


@per_chip
def add(
    input_tensor_a: Tensor,
    input_tensor_b,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    activations=(),
    input_tensor_a_activations=(),
    input_tensor_b_activations=(),
    output_tensor: Tensor | None = None,
) -> Tensor:
    """``a + b``; ``b`` a tensor or a number, broadcast over dimensions of size 1. dtype and memory default to a's.

    The activations (UnaryWithParam) are applied to the operands before and to the result after. ``output_tensor`` takes
    the result, and may be an operand; its dtype is then the default.
    Raises RuntimeError for operands that do not broadcast, mixed layouts and integers.
    """

    def compute(x, y, on_vector_unit):
        return x + y if on_vector_unit else aligned_sum(x, y)

    acts = (activations, input_tensor_a_activations, input_tensor_b_activations)
    operands = input_tensor_a, input_tensor_b
    return _binary("add", compute, round_to_bf16_, *operands, dtype, memory_config, *acts, output_tensor=output_tensor)


@per_chip
def subtract(
    input_tensor_a: Tensor,
    input_tensor_b,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    activations=(),
    input_tensor_a_activations=(),
    input_tensor_b_activations=(),
    output_tensor: Tensor | None = None,
) -> Tensor:
    """``a - b``; see ``add``."""

    def compute(x, y, on_vector_unit):
        return x - y if on_vector_unit else aligned_sum(x, -y)

    acts = (activations, input_tensor_a_activations, input_tensor_b_activations)
    operands = input_tensor_a, input_tensor_b
    return _binary(
        "subtract", compute, round_to_bf16_, *operands, dtype, memory_config, *acts, output_tensor=output_tensor
    )


@per_chip
def multiply(
    input_tensor_a: Tensor,
    input_tensor_b,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    activations=(),
    input_tensor_a_activations=(),
    input_tensor_b_activations=(),
    output_tensor: Tensor | None = None,
) -> Tensor:
    """``a * b``; see ``add``. For a bf16 destination rounded ties to even."""

    def compute(x, y, on_vector_unit):
        return x * y if on_vector_unit else keep_significant_bits(x, 10).mul_(as_multiplied(y))

    def to_bf16(x):
        return x.to(torch.bfloat16).to(torch.float32)

    acts = (activations, input_tensor_a_activations, input_tensor_b_activations)
    operands = input_tensor_a, input_tensor_b
    return _binary("multiply", compute, to_bf16, *operands, dtype, memory_config, *acts, output_tensor=output_tensor)


mul = multiply


@per_chip
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
    return device_tensor(values, *operands.values(), memory_config=memory_config or input_a.memory_config())


def _unary(op, activation, tensor, memory_config):
    check_operands(op, input_tensor=tensor)
    check_dtype(op, FLOATS, input_tensor=tensor)
    function = activation_of(op, activation, tensor.dtype is DataType.FLOAT32)
    values = chunked(function, tensor.dtype, tensor.shape, tensor.values)
    return device_tensor(values, tensor, memory_config=memory_config or tensor.memory_config())


@per_chip
def silu(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``x * sigmoid(x)``"""
    return _unary("silu", UnaryOpType.SILU, input_tensor, memory_config)


@per_chip
def sigmoid(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``1 / (1 + exp(-x))``"""
    return _unary("sigmoid", UnaryOpType.SIGMOID, input_tensor, memory_config)


@per_chip
def tanh(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """Hyperbolic tangent."""
    return _unary("tanh", UnaryOpType.TANH, input_tensor, memory_config)


@per_chip
def relu(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``max(x, 0)``"""
    return _unary("relu", UnaryOpType.RELU, input_tensor, memory_config)


@per_chip
def gelu(
    input_tensor: Tensor,
    *,
    variant: GeluVariant = GeluVariant.Accurate,
    fast_and_approximate_mode: bool = False,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """GELU: exact, by tanh, or by a table (FastLut, ``fast_and_approximate_mode``)."""
    if variant is GeluVariant.FastLut or fast_and_approximate_mode:
        activation = UnaryWithParam(UnaryOpType.GELU, _BY_TABLE)
    elif variant is GeluVariant.Tanh:
        activation = UnaryWithParam(UnaryOpType.GELU_TANH)
    else:
        activation = UnaryWithParam(UnaryOpType.GELU, _PRECISE)
    return _unary("gelu", activation, input_tensor, memory_config)
