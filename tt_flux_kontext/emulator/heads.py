"""Splitting and joining heads, and rotary position embedding."""

from .checks import check, check_dtype, check_layout, check_operands, check_rank, describe
from .eltwise import aligned_sum, chunked
from .formats import pack, round_to_bf16_
from .mesh import per_chip
from .tensor import Tensor, device_tensor
from .types import TILE_SIZE, DataType, Layout, MemoryConfig, WormholeComputeKernelConfig


@per_chip
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


@per_chip
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


@per_chip
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
