"""Mean and variance down the rows, in fp32 by the vector unit: the matrix unit would sum fp32 as TF32."""

import torch

from .checks import check, check_dtype, check_layout, check_operands, describe
from .gemm import ACCURATE
from .mesh import per_chip
from .tensor import Tensor, device_tensor
from .types import DataType, Layout, MemoryConfig, WormholeComputeKernelConfig


@per_chip
def mean(
    input_tensor: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    scalar: float = 1.0,
) -> Tensor:
    """``scalar`` times the mean down the rows of tiles in fp32, ``[..., R, C]`` to ``[..., 1, C]``.

    What the rows' padding holds does not matter. Raises RuntimeError for other dtypes and layouts, a bf16 destination,
    other dimensions than the last but one, and without ``keepdim``: TT-NN takes them, but they are not emulated.
    """
    _check("mean", input_tensor, dim, keepdim, compute_kernel_config)
    values = input_tensor.values.mean(-2, keepdim=True).mul_(scalar)
    return device_tensor(values, input_tensor, memory_config=memory_config)


@per_chip
def var(
    input_tensor: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    correction: bool = True,
) -> Tensor:
    """The variance down the rows, with ``correction`` by one row less; see ``mean``.

    The kernel goes through the rows twice: first for the mean, then for squares of differences from it.
    """
    _check("var", input_tensor, dim, keepdim, compute_kernel_config)
    values = torch.var(input_tensor.values, -2, correction=int(correction), keepdim=True)
    return device_tensor(values, input_tensor, memory_config=memory_config)


def _check(op, x, dim, keepdim, config) -> None:
    check_operands(op, input_tensor=x)
    check_dtype(op, [DataType.FLOAT32], input_tensor=x)
    check_layout(op, Layout.TILE, input_tensor=x)
    rank = len(x.shape)
    check(dim is not None and dim % rank == rank - 2, op, f"only down the rows is emulated, got {dim} of {describe(x)}")
    check(keepdim, op, "only with keepdim is it emulated")
    fp32_destination = (config or ACCURATE).fp32_dest_acc_en
    check(fp32_destination, op, "a bfloat16 destination is not emulated: fp32_dest_acc_en must be set")
