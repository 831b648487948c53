"""``ttnn.experimental``."""

from .fused_collectives import (
    all_gather_minimal_matmul_async,
    dit_fused_distributed_layernorm,
    dit_fused_distributed_layernorm_create_stats_buffer,
)
from .halo import neighbor_pad_async
from .head_normalization import dit_fused_distributed_rmsnorm
from .heads import nlp_concat_heads, nlp_create_qkv_heads, rotary_embedding_llama
from .matmul import dit_minimal_matmul_addcmul_fused, minimal_matmul, minimal_matmul_split

__all__ = [
    "all_gather_minimal_matmul_async",
    "dit_fused_distributed_layernorm",
    "dit_fused_distributed_layernorm_create_stats_buffer",
    "dit_fused_distributed_rmsnorm",
    "dit_minimal_matmul_addcmul_fused",
    "minimal_matmul",
    "minimal_matmul_split",
    "neighbor_pad_async",
    "nlp_concat_heads",
    "nlp_create_qkv_heads",
    "rotary_embedding_llama",
]
