"""What moves values and computes nothing."""

import torch

from tests.silicon.case import Bench, cases
from tests.silicon.rules import SAME
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.layers import Embedding, merge_heads, split_heads, to_heads
from tt_flux_kontext.models.vae import FeatureMap, pack, unpack
from tt_flux_kontext.precision import EXACT

CHANNELS = 16  # of latents


@cases(SAME, embedding={})
def embedding(bench: Bench, t, ids):
    layer = Embedding(bench.weights({"e.weight": t}), "e", *t.shape)
    yield layer(bench.put(ids, "uint32", tiled=False)), t[ids]


@cases(SAME, split_heads={}, split_heads_77={})
def heads_of_query_key_value(bench: Bench, x):
    query, key, value = x[0].unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    placed = split_heads(bench.put(x), 4, transpose_key=True)
    yield from zip(placed, (query, key.transpose(-1, -2), value), strict=True)


@cases(SAME, to_heads={}, to_heads_77={})
def heads_of_value(bench: Bench, x):
    yield to_heads(bench.put(x), 6), x[0].unflatten(-1, (6, -1)).transpose(1, 2)


@cases(SAME, merge_heads={}, merge_heads_77={})
def merged_heads(bench: Bench, x):
    yield merge_heads(bench.put(x)), x.transpose(1, 2).flatten(2)[None]


@cases(SAME, concat_rows={}, concat_rows_odd={})
def concatenation(bench: Bench, a, b):
    yield ttnn.concat([bench.put(a), bench.put(b)], dim=2), torch.cat([a, b], dim=2)


@cases(SAME, concat_odd_garbage={})
def concatenation_of_sums(bench: Bench, a, b, s):
    """The sums stand in the padding of both too."""
    row = bench.put(s)
    out = ttnn.concat([ttnn.add(bench.put(a), row), ttnn.add(bench.put(b), row)], dim=2)
    yield out, torch.cat([a + s, b + s], dim=2)


@cases(
    SAME,
    slice_rows={"start": 64, "end": 128},
    slice_rows_odd={"start": 40, "end": 90},
    slice_row1={"start": 40, "end": 41},
)
def rows(bench: Bench, a, start, end):
    yield ttnn.slice(bench.put(a), [0, 0, start, 0], [1, 1, end, a.shape[3]]), a[:, :, start:end]


@cases(SAME, permute_bias={}, permute_bias_77={})
def position_bias(bench: Bench, a):
    """T5's, from [query, key, heads] to [1, heads, query, key]."""
    queries, keys, heads = a.shape
    out = ttnn.reshape(ttnn.permute(bench.put(a), (2, 0, 1)), (1, heads, queries, keys))
    yield out, a.permute(2, 0, 1)[None]


@cases(SAME, step_unit_row={})
def row_of_a_table(bench: Bench, t):
    """The third one, by a product with a unit vector: how a step takes its modulation."""
    unit = bench.put(torch.eye(t.shape[2])[None, None, 2:3])
    config = EXACT.norm_config(bench.device)
    parts = ttnn.experimental.minimal_matmul_split(unit, bench.put(t), chunks=3, dim=-1, compute_kernel_config=config)
    yield from zip(parts, t[:, :, 2:3].chunk(3, dim=-1), strict=True)


def squares(a: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """2 x 2 latents as tokens [1, 1, height width / 4, 4 C], ordered (channel, row, column)."""
    parts = a.view(height // 2, 2, width // 2, 2, -1).permute(0, 2, 4, 1, 3)
    return parts.reshape(1, 1, height * width // 4, -1)


@cases(SAME, pack_unpack={"size": (8, 8)}, pack_unpack_odd={"size": (10, 6)})
def packing(bench: Bench, a, size):
    tokens = pack(FeatureMap(bench.put(a), *size), CHANNELS)
    yield tokens, squares(a, *size)
    yield unpack(tokens, *size).values, a


@cases(SAME, unpack_fp32={})
def unpacking(bench: Bench, a):
    latents = a.view(4, 4, CHANNELS, 2, 2).permute(0, 3, 1, 4, 2).reshape(1, 1, 64, CHANNELS)
    yield unpack(bench.put(a, "float32"), 8, 8).values, latents


@cases(SAME, upsample={})
def upsampling(bench: Bench, x):
    out = ttnn.upsample(bench.put(x, tiled=False), 2)
    yield out, x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


@cases(SAME, roundtrip_bfp8={})
def block_float(bench: Bench, x):
    yield bench.put(x, "bfloat8_b"), x
