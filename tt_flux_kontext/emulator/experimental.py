"""``ttnn.experimental``."""

from .attention import nlp_concat_heads, nlp_create_qkv_heads, rotary_embedding_llama
from .matmul import dit_minimal_matmul_addcmul_fused, minimal_matmul

__all__ = [
    "dit_minimal_matmul_addcmul_fused",
    "minimal_matmul",
    "nlp_concat_heads",
    "nlp_create_qkv_heads",
    "rotary_embedding_llama",
]
