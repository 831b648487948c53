"""Scaled dot-product attention of the transformer's tokens, whichever chips hold them."""

from dataclasses import dataclass

import torch

from tt_flux_kontext import program_configs
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.models.layers import with_rows
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
        masks: where padding is not at the end of each sequence's last chip: what attention adds to the scores of all
            keys, bfloat4_b [1, 1, rows, rows of all chips], by `rows` of a chip's queries: of context, image or both.
    """

    context: int
    image: int
    context_rows: int
    image_rows: int
    masks: "dict[int, ttnn.Tensor]"

    @classmethod
    def of(cls, context: int, image: int, parallel: Parallel) -> "Lengths":
        context_rows, image_rows = parallel.rows(context), parallel.rows(image)
        fills = parallel.sp == 1 or (context == parallel.sp * context_rows and image > (parallel.sp - 1) * image_rows)
        masks = {} if fills else _masks(context, image, context_rows, image_rows, parallel)
        return cls(context, image, context_rows, image_rows, masks)


def _masks(
    context: int, image: int, context_rows: int, image_rows: int, parallel: Parallel
) -> "dict[int, ttnn.Tensor]":
    chips = torch.arange(parallel.sp)[:, None]
    sequences = (context, context_rows), (image, image_rows)
    real = torch.cat([chips * rows + torch.arange(rows) < tokens for tokens, rows in sequences], dim=1)
    scores = torch.where(real.flatten(), 0.0, HIDDEN)
    # Attention reads a mask once a head. Both of its values are as good in bfloat4_b.
    return {
        rows: upload(scores.expand(1, 1, rows, -1), parallel.device, ttnn.bfloat4_b)
        for rows in {context_rows, image_rows, context_rows + image_rows}
    }


class Attention:
    """Of every token over all tokens.

    Chips that share a sequence pass their keys and values around in a ring (Ring Attention, arXiv:2310.01889), or
    gather them where padding has to be masked that ring attention can't: it masks the end of a whole sequence only.
    """

    def __init__(self, weights: Weights):
        self.parallel = weights.parallel
        self.short = self.parallel.waits_for_keys and weights.precision.linear_weights == "bfloat8_b"
        self.compute_config = weights.compute_config

    def dtype(self, lengths: Lengths) -> "ttnn.DataType":
        """Of queries, keys and values, which ring attention wants to be the same; its results are bfloat16."""
        return ttnn.bfloat8_b if self.short and not lengths.masks else ttnn.bfloat16

    def __call__(self, x: QueryKeyValue, lengths: Lengths) -> "ttnn.Tensor":
        """Of one sequence, the rows of context and image together."""
        if self.parallel.sp > 1 and not lengths.masks:
            attention, _ = self._around(x, lengths.context + lengths.image)
            return attention
        query, *key_value = x
        return self._over(*map(self.parallel.all_gather_rows, key_value), query, lengths)

    def joint(
        self, image: QueryKeyValue, context: QueryKeyValue, lengths: Lengths
    ) -> "tuple[ttnn.Tensor, ttnn.Tensor]":
        """Of two sequences, as if they were one. Returns the image's part and the context's."""
        if self.parallel.sp > 1 and not lengths.masks:
            return self._around(image, lengths.image, context, lengths.context)
        # TT-NN's op for two sequences gives each head as many cores as each can have, 2 of 64 for 24 heads, and leaves
        # the others idle (tt-metal issue 55762). To put keys and values together takes a quarter of what that costs.
        (image_query, *of_image), (context_query, *of_context) = image, context
        key, value = (self.parallel.all_gather_rows(_joined(*pair)) for pair in zip(of_context, of_image))
        return self._over(key, value, image_query, lengths), self._over(key, value, context_query, lengths)

    def _over(self, key: "ttnn.Tensor", value: "ttnn.Tensor", query: "ttnn.Tensor", lengths: Lengths) -> "ttnn.Tensor":
        """Of some rows over all."""
        return ttnn.transformer.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=lengths.masks.get(query.shape[2]),
            is_causal=False,
            program_config=program_configs.attention(self.parallel.device, query),
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
        queries = (x[0], joint[0]) if joint else x[:1]
        config = program_configs.attention(self.parallel.device, *queries, spare_rows=1)
        image, context, _ = ttnn.transformer.ring_joint_scaled_dot_product_attention(
            *x,
            **more,
            persistent_output_buffer_k=buffer("key", x[1]),
            persistent_output_buffer_v=buffer("value", x[2]),
            joint_strategy="rear",
            logical_n=tokens,
            dim=2,
            program_config=config,
            compute_kernel_config=self.compute_config,
            # The last row of cores moves keys and values.
            ccl_core_grid_offset=ttnn.CoreCoord(0, config.compute_with_storage_grid_size.y),
            **self.parallel.ring(x[0]),
        )
        return image, context


def _joined(context: "ttnn.Tensor", image: "ttnn.Tensor") -> "ttnn.Tensor":
    """Their rows, [1, heads, S, d], one below the other."""
    rows = context.shape[2] + image.shape[2]
    if context.shape[2] % ttnn.TILE_SIZE == 0:
        # Whole tiles are copied as they are; else all rows would be taken out of their tiles and put into new ones.
        image = with_rows(image, image.padded_shape[2])
    return with_rows(ttnn.concat([context, image], dim=2), rows)
