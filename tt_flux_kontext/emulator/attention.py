"""Scaled dot-product attention: what TT-NN takes and refuses. What its kernels compute is in ``flash_attention``."""

import math

import torch

from .checks import check, check_dtype, check_layout, check_operands, check_padding, check_rank, describe
from .flash_attention import Method, attend
from .formats import pack
from .mesh import per_chip
from .tensor import Tensor, device_tensor
from .types import (
    TILE_SIZE,
    DataType,
    Layout,
    MathFidelity,
    MemoryConfig,
    SDPAProgramConfig,
    WormholeComputeKernelConfig,
)

PACKED = (DataType.BFLOAT16, DataType.BFLOAT8_B, DataType.BFLOAT4_B)


@per_chip
def scaled_dot_product_attention(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: SDPAProgramConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """``softmax(q @ k^T * scale + mask) @ v``: q ``[B, H, Sq, D]``, k and v ``[B, Hkv, Sk, D]``, H a multiple of Hkv.

    ``attn_mask``: ``[1 or B, 1 or H, Sq, Sk]``, added to the scaled scores. ``scale`` defaults to ``1 / sqrt(D)``.
    Without ``program_config`` chunks have 32 rows and the exponential is the fast one (2 % off), without
    ``compute_kernel_config`` products are HiFi2 and sums bf16.
    Raises RuntimeError for fp32, row-major or partly filled heads, a mask together with ``is_causal``, and shapes that
    do not fit.
    """
    op, q, k, v = "scaled_dot_product_attention", input_tensor_q, input_tensor_k, input_tensor_v
    tensors = {"input_tensor_q": q, "input_tensor_k": k, "input_tensor_v": v}
    check_operands(op, **tensors, attn_mask=attn_mask)
    check_heads(op, PACKED, tensors)
    check_padding(op, input_tensor_k=k, input_tensor_v=v)
    shapes = ", ".join(map(describe, (q, k, v)))
    batch, heads, length, _ = q.shape
    check(k.shape == v.shape and k.shape[0] == batch, op, f"k and v must have one shape and q's batch: {shapes}")
    check(heads % k.shape[1] == 0, op, f"q's heads must be a multiple of k's: {shapes}")
    check(not is_causal or length == k.shape[2], op, f"causal attention needs q and k of one length: {shapes}")
    check(not (is_causal and attn_mask is not None), op, "is_causal and attn_mask cannot both be present")
    check_program(op, q, program_config)
    method = method_of(q, scale, program_config, compute_kernel_config)
    streams = not (method.config.fp32_dest_acc_en or is_causal or attn_mask is not None)
    method = streaming(method) if streams else method._replace(wide=method.config.fp32_dest_acc_en)
    mask = None
    if attn_mask is not None:
        check_dtype(op, PACKED, attn_mask=attn_mask)
        check_layout(op, Layout.TILE, attn_mask=attn_mask)
        check_rank(op, 4, attn_mask=attn_mask)
        fits = attn_mask.shape[2:] == (length, k.shape[2])
        fits = fits and attn_mask.shape[0] in (1, batch) and attn_mask.shape[1] in (1, heads)
        check(fits, op, f"the mask {describe(attn_mask)} does not fit: {shapes}")
        # Scores are scaled in the exponential only, so TT-NN divides the mask.
        unscaled = pack(attn_mask.values.float().div_(method.scale), attn_mask.dtype)
        mask = unscaled.expand(batch, heads, -1, -1)
    group = heads // k.shape[1]
    keys, values = (x.values.repeat_interleave(group, 1) if group > 1 else x.values for x in (k, v))
    out = torch.empty_like(q.values)
    for b in range(batch):
        part = None if mask is None else mask[b]
        attend(q.values[b], [(keys[b], values[b])], method, out[b], q.dtype, part, is_causal)
    return device_tensor(out, q, memory_config=memory_config)


@per_chip
def joint_scaled_dot_product_attention(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    joint_tensor_q: Tensor,
    joint_tensor_k: Tensor,
    joint_tensor_v: Tensor,
    *,
    joint_strategy: str,
    program_config: SDPAProgramConfig,
    scale: float | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over two sequences joined: ``[B, H, S, D]`` with ``[B, H, J, D]`` at its rear.

    Returns the two parts, ``[B, H, S, D]`` and ``[B, H, J, D]``. Raises RuntimeError for another ``joint_strategy``
    than "rear", mixed dtypes, fp32, row-major and shapes that do not fit.
    """
    op = "joint_scaled_dot_product_attention"
    main, joint = (input_tensor_q, input_tensor_k, input_tensor_v), (joint_tensor_q, joint_tensor_k, joint_tensor_v)
    names = ("input_tensor_q", "input_tensor_k", "input_tensor_v", "joint_tensor_q", "joint_tensor_k", "joint_tensor_v")
    tensors = dict(zip(names, main + joint))
    check_operands(op, **tensors)
    check(joint_strategy == "rear", op, f"joint strategy must be 'rear', got {joint_strategy!r}")
    check_heads(op, (DataType.BFLOAT16, DataType.BFLOAT8_B), tensors)
    check_padding(op, **{name: tensor for name, tensor in tensors.items() if not name.endswith("q")})
    q, jq = input_tensor_q, joint_tensor_q
    for name, tensor in tensors.items():
        check(tensor.dtype is q.dtype, op, f"{name} must have q's dtype {q.dtype.name}, got {describe(tensor)}")
        first = q if name.startswith("input") else jq
        check(
            tensor.shape == first.shape,
            op,
            f"{name} must have the shape of its query {describe(first)}, got {describe(tensor)}",
        )
    check(
        jq.shape[:2] == q.shape[:2] and jq.shape[3] == q.shape[3], op, f"{describe(q)} and {describe(jq)} do not join"
    )
    check_program(op, q, program_config)
    method = method_of(q, scale, program_config, compute_kernel_config)
    outs = torch.empty_like(q.values), torch.empty_like(jq.values)
    for b in range(q.shape[0]):
        sequences = [(k.values[b], v.values[b]) for _, k, v in (main, joint)]
        for query, out in zip((q, jq), outs):
            attend(query.values[b], sequences, method, out[b], q.dtype)
    return device_tensor(outs[0], q), device_tensor(outs[1], jq)


def method_of(q, scale, program, config) -> Method:
    """Of a kernel whose scores are bf16; raises RuntimeError for a configuration without a fidelity."""
    config = config or WormholeComputeKernelConfig(math_fidelity=MathFidelity.HiFi2)
    given = config.math_fidelity is not MathFidelity.Invalid
    check(given, "attention", "the compute kernel config has no math fidelity")
    return Method(
        keys=program.k_chunk_size if program else TILE_SIZE,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        wide=False,
        exact_exponential=program is not None and program.exp_approx_mode is False,
        config=config,
    )


def streaming(method: Method) -> Method:
    """Of the kernel that takes over with a bf16 destination, which has the fast exponential only."""
    return method._replace(wide=False, exact_exponential=False)


def check_heads(op, dtypes, tensors):
    """Refuse ``tensors``, by name, that are not whole tiles ``[B, H, S, D]`` of these dtypes with one D."""
    check_layout(op, Layout.TILE, **tensors)
    check_dtype(op, dtypes, **tensors)
    check_rank(op, 4, **tensors)
    for name, tensor in tensors.items():
        width = next(iter(tensors.values())).shape[3]
        check(tensor.shape[3] == width, op, f"{name} must have head dim {width}, got {describe(tensor)}")
        check(width % TILE_SIZE == 0, op, f"padding is not supported on the head dim, got {describe(tensor)}")


def check_program(op, q, config):
    """Refuse chunks that are not whole tiles, and cores that the device does not have."""
    if config is None:
        return
    chunks, used = (config.q_chunk_size, config.k_chunk_size), config.compute_with_storage_grid_size
    whole = all(chunk > 0 and chunk % TILE_SIZE == 0 for chunk in chunks)
    check(whole, op, f"q_chunk_size and k_chunk_size must be positive multiples of 32, got {chunks}")
    grid = q.device().compute_with_storage_grid_size()
    check(
        used.x <= grid.x and used.y <= grid.y,
        op,
        f"grid {used.x}x{used.y} is larger than the device's {grid.x}x{grid.y}",
    )
