"""How work is dealt to a chip's cores, where TT-NN leaves that to its caller.

The device says how many there are: 8 x 8 of a Wormhole, 8 x 9 of one in a Galaxy, 11 x 10 of a Blackhole. L1 is 1.5 MB
on all of them, so that what fits one fits all.
"""

import math
from collections.abc import Sequence

from tt_flux_kontext.backend import ttnn

TILE = 32

# Bytes of it for an account that doesn't count all. TT-NN has 1.36 MB for a convolution.
L1_ROOM = 1_300_000

# Attention. A core takes a chunk of one head's queries at a time, and all keys and values pass by it in chunks.
#
# Of queries, in the order of preference: TT-NN's kernels were tried with 128 (tests/silicon), and 192 is the most that
# fits L1 beside 512 keys of 128 features. They are even numbers of tiles, of which the matrix engine loads a tile of
# keys once for two of queries.
_QUERIES = (128, 192, 64)
# With fewer a core waits for the keys: a chunk of 64 takes 0.8 of the time of one of 128 (tt-metal issue 55758).
LEAST_QUERIES = 96
# The chunk of keys changes the rounding, so it is the same everywhere. A larger one is quicker, and wouldn't fit.
_KEYS = 512


def attention_chunks(head_dim: int, heads: int, lengths: Sequence[int], cores: int) -> tuple[int, int]:
    """Rows of queries and of keys in a chunk, so that as few cores as possible wait for the last one.

    Args:
        lengths: of the sequences of queries, each of which is cut by itself.
    """
    keys = min(max(2**16 // head_dim // TILE, 1) * TILE, _KEYS)  # 64 K numbers, of which L1 has two chunks and two of V

    def time(queries: int) -> int:
        return attention_rounds(queries, heads, lengths, cores) * max(queries, LEAST_QUERIES)

    return min((queries for queries in _QUERIES if queries <= keys // 2), key=time), keys


def attention_rounds(queries: int, heads: int, lengths: Sequence[int], cores: int) -> int:
    """Chunks of queries of the core that has most: TT-NN deals out those of all heads one by one."""
    return math.ceil(heads * sum(math.ceil(length / queries) for length in lengths) / cores)


def attention(device: "ttnn.MeshDevice", *queries: "ttnn.Tensor", spare_rows: int = 0):
    """Of attention over these queries, [1, heads, S, head_dim] each, that leaves so many rows of cores to others."""
    grid = device.compute_with_storage_grid_size()
    cores = ttnn.CoreCoord(grid.x, grid.y - spare_rows)
    _, heads, _, head_dim = queries[0].shape
    of_queries, of_keys = attention_chunks(head_dim, heads, [each.shape[2] for each in queries], cores.x * cores.y)
    return ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=cores,
        q_chunk_size=of_queries,
        k_chunk_size=of_keys,
        exp_approx_mode=False,  # else it is 2 % off, as it is without a program config
    )


def gathered_product(device: "ttnn.MeshDevice", width: int):
    """Of a matrix product that gathers its input, of which each chip has `width` features."""
    grid, tiles = device.compute_with_storage_grid_size(), width // TILE
    return ttnn.MinimalMatmulConfig(
        M_block_size=8,  # 8 x 8 x 8 tiles are TT-NN's own choice where a product doesn't gather
        K_block_size=next(size for size in (8, 6, 4, 2) if tiles % size == 0),  # a block is of one chip
        N_block_size=8,
        subblock_h=2,  # four tiles of float32 sums fit the destination register
        subblock_w=2,
        compute_with_storage_grid_size=ttnn.CoreCoord(grid.x, grid.y - 1),  # the last row serves the links
    )
