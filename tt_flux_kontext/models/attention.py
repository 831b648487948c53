"""Scaled dot-product attention of the transformer's tokens, whichever chips hold them."""

from dataclasses import dataclass

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.models.weights import Weights, upload

HIDDEN = -1e9  # score of a key that is padding; finite: -inf in mask arithmetic gives NaN

QueryKeyValue = tuple["ttnn.Tensor", "ttnn.Tensor", "ttnn.Tensor"]
"""Of each head: [1, heads, S, head_dim]."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of an edit and how chips hold them: each has rows of the context, and below them rows of the image.

    Attributes:
        context, image: tokens, over all chips.
        context_rows, image_rows: of a chip, padding included.
        mask: where padding is not at the end of each sequence's last chip: what attention adds to the scores of all
            keys, bfloat4_b [1, 1, rows of a chip, rows of all chips].
    """

    context: int
    image: int
    context_rows: int
    image_rows: int
    mask: "ttnn.Tensor | None"

    @classmethod
    def of(cls, context: int, image: int, parallel: Parallel) -> "Lengths":
        context_rows, image_rows = parallel.rows(context), parallel.rows(image)
        fills = parallel.sp == 1 or (context == parallel.sp * context_rows and image > (parallel.sp - 1) * image_rows)
        mask = None if fills else _mask(context, image, context_rows, image_rows, parallel)
        return cls(context, image, context_rows, image_rows, mask)


def _mask(context: int, image: int, context_rows: int, image_rows: int, parallel: Parallel) -> "ttnn.Tensor":
    chips = torch.arange(parallel.sp)[:, None]
    sequences = (context, context_rows), (image, image_rows)
    real = torch.cat([chips * rows + torch.arange(rows) < tokens for tokens, rows in sequences], dim=1)
    scores = torch.where(real.flatten(), 0.0, HIDDEN).expand(1, 1, context_rows + image_rows, -1)
    # Attention reads it once a head. Both of its values are as good in bfloat4_b.
    return upload(scores, parallel.device, ttnn.bfloat4_b)


class Attention:
    """Of every token over all tokens.

    Chips that share a sequence pass their keys and values around in a ring (Ring Attention, arXiv:2310.01889), or
    gather them where padding has to be masked that ring attention can't: it masks the end of a whole sequence only.
    """

    def __init__(self, weights: Weights, head_dim: int):
        self.parallel = weights.parallel
        self.short = self.parallel.waits_for_keys and weights.precision.linear_weights == "bfloat8_b"
        self.compute_config = weights.compute_config
        # Around a ring, the last row of cores moves keys and values.
        self.whole, self.part = (weights.attention_config(head_dim, spare_rows=rows) for rows in (0, 1))

    def dtype(self, lengths: Lengths) -> "ttnn.DataType":
        """Of queries, keys and values, which ring attention wants to be the same; its results are bfloat16."""
        return ttnn.bfloat8_b if self.short and lengths.mask is None else ttnn.bfloat16

    def __call__(self, x: QueryKeyValue, lengths: Lengths) -> "ttnn.Tensor":
        """Of one sequence, the rows of context and image together."""
        if self.parallel.sp > 1 and lengths.mask is None:
            attention, _ = self._around(x, lengths.context + lengths.image)
            return attention
        query, key, value = x
        return ttnn.transformer.scaled_dot_product_attention(
            query,
            self.parallel.all_gather_rows(key),
            self.parallel.all_gather_rows(value),
            attn_mask=lengths.mask,
            is_causal=False,
            program_config=self.whole,
            compute_kernel_config=self.compute_config,
        )

    def joint(
        self, image: QueryKeyValue, context: QueryKeyValue, lengths: Lengths
    ) -> "tuple[ttnn.Tensor, ttnn.Tensor]":
        """Of two sequences, as if they were one. Returns the image's part and the context's."""
        if lengths.mask is not None:
            together = self(tuple(ttnn.concat(list(pair), dim=2) for pair in zip(context, image)), lengths)
            return _rows(together, lengths.context_rows, None), _rows(together, 0, lengths.context_rows)
        if self.parallel.sp > 1:
            return self._around(image, lengths.image, context, lengths.context)
        return ttnn.transformer.joint_scaled_dot_product_attention(
            *image,
            *context,
            joint_strategy="rear",
            program_config=self.whole,
            compute_kernel_config=self.compute_config,
        )

    def _around(self, x: QueryKeyValue, tokens: int, joint: QueryKeyValue | None = None, joint_tokens: int = 0):
        """Ring attention; returns its two outputs."""
        buffer = self.parallel.buffer
        more = {}
        if joint:
            more = dict(zip(("joint_tensor_q", "joint_tensor_k", "joint_tensor_v"), joint), logical_l=joint_tokens)
            more["persistent_output_buffer_joint_k"] = buffer("joint key", joint[1])
            more["persistent_output_buffer_joint_v"] = buffer("joint value", joint[2])
        grid = self.part.compute_with_storage_grid_size
        image, context, _ = ttnn.transformer.ring_joint_scaled_dot_product_attention(
            *x,
            **more,
            persistent_output_buffer_k=buffer("key", x[1]),
            persistent_output_buffer_v=buffer("value", x[2]),
            joint_strategy="rear",
            logical_n=tokens,
            dim=2,
            program_config=self.part,
            compute_kernel_config=self.compute_config,
            ccl_core_grid_offset=ttnn.CoreCoord(0, grid.y),
            **self.parallel.ring(x[0]),
        )
        return image, context


def _rows(x: "ttnn.Tensor", start: int, stop: int | None) -> "ttnn.Tensor":
    batch, heads, rows, size = x.shape
    return ttnn.slice(x, [0, 0, start, 0], [batch, heads, rows if stop is None else stop, size])
