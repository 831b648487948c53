"""Attention, the splitting and joining of heads, and rotary position embedding.

Scores and probabilities are rounded to bf16 between the two products, as in the kernels' intermediate buffers; the
row sums are fp32. Sums inside the products are fp32 whatever the compute config says about the destination.
"""

import dataclasses
import math

import torch

from .checks import check, check_dtype, check_layout, check_operands, check_rank, describe
from .eltwise import aligned_sum, chunked
from .formats import pack, round_to_bf16_
from .gemm import ACCURATE, bf16_product, product
from .tensor import Tensor, device_tensor
from .types import TILE_SIZE, DataType, Layout, MemoryConfig, SDPAProgramConfig, WormholeComputeKernelConfig

QUERIES = 256
"""Rows of scores worked on at a time."""

_TINY = torch.finfo(torch.float32).tiny
"""Below this values are denormal: zero on the chip, and a hundred times slower on a CPU."""

_PACKED = (DataType.BFLOAT16, DataType.BFLOAT8_B, DataType.BFLOAT4_B)


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
    Raises RuntimeError for fp32, row-major or partly filled heads, a mask together with ``is_causal``, and shapes that
    do not fit.
    """
    op, q, k, v = "scaled_dot_product_attention", input_tensor_q, input_tensor_k, input_tensor_v
    tensors = {"input_tensor_q": q, "input_tensor_k": k, "input_tensor_v": v}
    check_operands(op, **tensors, attn_mask=attn_mask)
    _check_heads(op, _PACKED, tensors)
    shapes = ", ".join(map(describe, (q, k, v)))
    batch, heads, length, _ = q.shape
    check(k.shape == v.shape and k.shape[0] == batch, op, f"k and v must have one shape and q's batch: {shapes}")
    check(heads % k.shape[1] == 0, op, f"q's heads must be a multiple of k's: {shapes}")
    check(not is_causal or length == k.shape[2], op, f"causal attention needs q and k of one length: {shapes}")
    check(not (is_causal and attn_mask is not None), op, "is_causal and attn_mask cannot both be present")
    _check_program(op, q, program_config)
    mask = None
    if attn_mask is not None:
        check_dtype(op, _PACKED, attn_mask=attn_mask)
        check_layout(op, Layout.TILE, attn_mask=attn_mask)
        check_rank(op, 4, attn_mask=attn_mask)
        fits = attn_mask.shape[2:] == (length, k.shape[2])
        fits = fits and attn_mask.shape[0] in (1, batch) and attn_mask.shape[1] in (1, heads)
        check(fits, op, f"the mask {describe(attn_mask)} does not fit: {shapes}")
        mask = attn_mask.values.expand(batch, heads, -1, -1)
    group = heads // k.shape[1]
    out = torch.empty_like(q.values)
    for b in range(batch):
        for head in range(heads):
            _attend(
                q.values[b, head], k.values[b, head // group], v.values[b, head // group], out[b, head],
                q.dtype, scale, compute_kernel_config, None if mask is None else mask[b, head], is_causal,
            )  # fmt: skip
    return device_tensor(out, q, memory_config=memory_config)


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
    _check_heads(op, (DataType.BFLOAT16, DataType.BFLOAT8_B), tensors)
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
    _check_program(op, q, program_config)
    outs = torch.empty_like(q.values), torch.empty_like(jq.values)
    for b in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = (
                torch.cat([tensor.values[b, head], rear.values[b, head]]) for tensor, rear in zip(main[1:], joint[1:])
            )
            for query, out in zip((q, jq), outs):
                _attend(query.values[b, head], keys, values, out[b, head], q.dtype, scale, compute_kernel_config)
    return device_tensor(outs[0], q), device_tensor(outs[1], jq)


def _attend(q, k, v, out, dtype, scale, config, mask=None, is_causal=False):
    """One head: q ``[Sq, D]``, k and v ``[Sk, D]``, out ``[Sq, D]``."""
    config = dataclasses.replace(config or ACCURATE, fp32_dest_acc_en=True)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    for start in range(0, len(q), QUERIES):
        rows = slice(start, min(start + QUERIES, len(q)))
        # Rows before the diagonal's end see no later keys.
        seen = rows.stop if is_causal else len(k)
        scores = bf16_product(q[rows], k[:seen].mT, config).to(torch.float32).mul_(scale)
        if mask is not None:
            scores += mask[rows]
        if is_causal:
            future = torch.ones_like(scores, dtype=torch.bool).triu_(start + 1)
            scores.masked_fill_(future, -math.inf)
        scores -= scores.amax(-1, keepdim=True)
        probabilities = torch.threshold_(round_to_bf16_(scores.exp_()), _TINY, 0.0)
        total = probabilities.sum(-1, keepdim=True)
        weighted = product(probabilities.to(torch.bfloat16), v[:seen], config)
        out[rows] = pack(weighted.div_(total), dtype)


def _check_heads(op, dtypes, tensors):
    check_layout(op, Layout.TILE, **tensors)
    check_dtype(op, dtypes, **tensors)
    check_rank(op, 4, **tensors)
    for name, tensor in tensors.items():
        width = next(iter(tensors.values())).shape[3]
        check(tensor.shape[3] == width, op, f"{name} must have head dim {width}, got {describe(tensor)}")
        check(width % TILE_SIZE == 0, op, f"padding is not supported on the head dim, got {describe(tensor)}")


def _check_program(op, q, config):
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


def nlp_create_qkv_heads(
    input: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    transpose_k_heads: bool = True,
    memory_config: MemoryConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, 1, S, (H + 2 * Hkv) * D]``, q then k then v, to ``[B, H, S, D]`` and twice ``[B, Hkv, S, D]``.

    With ``transpose_k_heads`` k is ``[B, Hkv, D, S]``. Raises RuntimeError for a width that does not divide into heads
    of whole tiles.
    """
    op, kv_heads = "nlp_create_qkv_heads", num_heads if num_kv_heads is None else num_kv_heads
    check_operands(op, input=input)
    check_layout(op, Layout.TILE, input=input)
    check_rank(op, 4, input=input)
    batch, one, length, width = input.shape
    check(one == 1, op, f"the input must be [B, 1, S, width], got {describe(input)}")
    heads = (num_heads, kv_heads, kv_heads)
    divides = width % sum(heads) == 0 and width // sum(heads) % TILE_SIZE == 0
    check(divides, op, f"{describe(input)} does not divide into {sum(heads)} heads of whole tiles")
    size = width // sum(heads)
    parts = input.values.view(batch, length, width).split([count * size for count in heads], -1)
    q, k, v = (part.unflatten(-1, (count, size)).transpose(1, 2) for part, count in zip(parts, heads))
    k = k.mT if transpose_k_heads else k
    if input.dtype.is_block_float:
        k = pack(k, input.dtype)  # transposed, its values are in other blocks
    return tuple(device_tensor(part, input, memory_config=memory_config) for part in (q, k, v))


def nlp_concat_heads(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """``[B, H, S, D]`` to ``[B, 1, S, H * D]``. Raises RuntimeError for heads that are not whole tiles wide."""
    op = "nlp_concat_heads"
    check_operands(op, input_tensor=input_tensor)
    check_layout(op, Layout.TILE, input_tensor=input_tensor)
    check_rank(op, 4, input_tensor=input_tensor)
    whole = input_tensor.shape[3] % TILE_SIZE == 0
    check(whole, op, f"heads must be whole tiles wide, got {describe(input_tensor)}")
    values = input_tensor.values.transpose(1, 2).flatten(2).unsqueeze(1)
    return device_tensor(values, input_tensor, memory_config=memory_config)


def rotary_embedding_llama(
    input_tensor: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    trans_mat: Tensor,
    *,
    is_decode_mode: bool = False,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
) -> Tensor:
    """``x * cos + (x @ trans_mat) * sin`` in bf16, ``trans_mat[1, 1, 32, 32]`` applied to each 32 columns of x.

    x ``[B, H, S, D]``, cos and sin ``[1, 1 or H, >= S, D]``. Both products are rounded to bf16 before the sum, as in
    the kernel. Raises RuntimeError for other dtypes and shapes, among them tables shorter than x and a D that is not
    whole tiles, which TT-NN lets pass; decode mode is not emulated.
    """
    op, x = "rotary_embedding_llama", input_tensor
    tensors = {"input_tensor": x, "cos_cache": cos_cache, "sin_cache": sin_cache, "trans_mat": trans_mat}
    check(not is_decode_mode, op, "decode mode is not emulated")
    check_operands(op, **tensors)
    check_layout(op, Layout.TILE, **tensors)
    check_dtype(op, [DataType.BFLOAT16], **tensors)
    check_rank(op, 4, **tensors)
    _, heads, length, width = x.shape
    check(
        width % TILE_SIZE == 0 and width <= 256, op, f"the head dim must be whole tiles, at most 256, got {describe(x)}"
    )
    check(
        cos_cache.shape == sin_cache.shape,
        op,
        f"cos {describe(cos_cache)} and sin {describe(sin_cache)} differ in shape",
    )
    fits = cos_cache.shape[0] == 1 and cos_cache.shape[1] in (1, heads) and cos_cache.shape[3] == width
    check(fits, op, f"cos {describe(cos_cache)} does not fit {describe(x)}")
    check(cos_cache.shape[2] >= length, op, f"cos {describe(cos_cache)} is shorter than {describe(x)}")
    check(trans_mat.shape == (1, 1, 32, 32), op, f"trans_mat must be [1, 1, 32, 32], got {describe(trans_mat)}")
    turn = trans_mat.values.view(TILE_SIZE, TILE_SIZE).float()

    def rotate(values, cos, sin):
        turned = (values.view(-1, TILE_SIZE) @ turn).view(values.shape)
        return aligned_sum(round_to_bf16_(values.mul_(cos)), round_to_bf16_(round_to_bf16_(turned).mul_(sin)))

    tables = (cos_cache.values[:, :, :length], sin_cache.values[:, :, :length])
    return device_tensor(chunked(rotate, x.dtype, x.shape, x.values, *tables), x, memory_config=memory_config)
