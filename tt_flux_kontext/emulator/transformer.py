"""``ttnn.transformer``."""

from .attention import joint_scaled_dot_product_attention, scaled_dot_product_attention
from .ring_attention import ring_joint_scaled_dot_product_attention

__all__ = [
    "joint_scaled_dot_product_attention",
    "ring_joint_scaled_dot_product_attention",
    "scaled_dot_product_attention",
]
