"""How a convolution is cut to fit into L1: its map into slices, and a core's rows of a slice into blocks.

TT-NN cuts a map in DRAM into slices, each of them five device operations. By default a core takes all of its rows of a
slice at once; by blocks of rows a slice may be four times as large. TT-NN would choose the slices for blocks of a given
size too, but for some maps they then do not fit, and where a core's rows don't divide its blocks are single tiles, for
each of which weights are read anew. So both are chosen here, by an account of L1 and of time.
"""

import math
from typing import NamedTuple

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.program_configs import L1_ROOM

_TILE = 32
_BF16_TILE, _FLOAT32_TILE = 2 * _TILE**2, 4 * _TILE**2  # bytes
_CHANNELS = 8  # that are not parted: 16 bytes

# Microseconds, to compare cuts by. The first two are the planner's: of a slice's launches, of a product of two tiles.
_SLICE = 25
_PRODUCT = 0.3
_BLOCK = 2  # assumed: cores wait for each other
_READ = 0.01  # of a tile of weights


class Conv(NamedTuple):
    """A convolution: channels in and out, kernel, stride, (height, width) of its output, and whether that is tiled."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    size: tuple[int, int]
    tiled: bool


class Cut(NamedTuple):
    """Whether each column of cores has channels of its own; slices, of the map's width; rows of a block."""

    by_channels: bool
    slices: int
    block: int


def cut(conv: Conv, grid: "ttnn.CoreCoord") -> Cut | None:
    """The quickest cut for a grid of cores, or None: where all fits uncut, and where nothing does."""
    if conv.kernel == 1:  # a matrix product, which works through a map in DRAM by itself
        return None
    unit = _TILE if conv.tiled else 1
    columns = math.ceil(conv.size[1] / unit)
    quickest, best = math.inf, None
    layouts = (False, True) if conv.inputs >= _CHANNELS * grid.x else (False,)
    for by_channels in layouts:
        for slices in range(1, columns + 1):
            if slices * _SLICE >= quickest:
                break
            core = _Core(conv, grid, by_channels, sliced=slices > 1)
            widths = unit * math.ceil(columns / slices), unit * (columns // slices)
            rows, fewer = (_share(math.ceil(conv.size[0] * width / _TILE), core.cores) for width in widths)
            fitting = core.fitting(rows, widths[0])
            if slices == 1 and fitting >= rows:
                return None
            block = next((n for n in range(fitting, 0, -1) if rows % n == fewer % n == 0), None)
            if block and (time := slices * (_SLICE + core.time(rows, rows // block))) < quickest:
                quickest, best = time, Cut(by_channels, slices, block * _TILE)
    return best


class _Core:
    """One of the `cores` that share a slice's rows. Where columns share the channels, each of them has all rows."""

    def __init__(self, conv: Conv, grid: "ttnn.CoreCoord", by_channels: bool, sliced: bool):
        self.conv, self.by_channels = conv, by_channels
        self.cores = grid.y if by_channels else grid.x * grid.y
        columns = grid.x if by_channels else 1
        together = _CHANNELS if sliced or not conv.tiled else _TILE
        channels = together * _share(math.ceil(conv.inputs / together), columns)
        self.position = 2 * channels  # bytes
        self.window = math.ceil(channels * conv.kernel / _TILE)  # tiles of a row of the kernel
        self.outputs = _share(math.ceil(conv.outputs / _TILE), columns)  # tiles

    def fitting(self, rows: int, width: int) -> int:
        """How many rows of tiles fit at once, beside all that it has of a slice of so many columns: `rows`."""
        kernel, stride = self.conv.kernel, self.conv.stride
        lines = rows * _TILE / width * stride + kernel - 1  # of the map, under its windows
        windows = math.ceil(lines * ((width - 1) * stride + kernel)) * self.position
        cut_out = rows * _TILE * stride**2 * self.position  # of DRAM, which windows are made from
        output = rows * self.outputs * _BF16_TILE
        if cut_out + windows > L1_ROOM or not self.conv.tiled and not self._fits_twice(output, windows):
            return 0
        weights = self.window * self.outputs * (1 if self.by_channels else kernel) * _BF16_TILE
        of_row = 2 * self.window * _BF16_TILE + self.outputs * _FLOAT32_TILE  # gathered, then in tiles; sums
        return max(L1_ROOM - windows - output - weights, 0) // of_row

    @staticmethod
    def _fits_twice(output: int, windows: int) -> bool:
        """Whether an output in tiles has room beside it for one that isn't: where windows were, or beyond those."""
        return output <= windows or windows + 2 * output <= L1_ROOM

    def time(self, rows: int, blocks: int) -> float:
        """Microseconds for so many rows of tiles in so many blocks."""
        weights = math.ceil(self.conv.inputs / _TILE) * self.conv.kernel**2  # tiles for one of outputs
        read = weights * math.ceil(self.conv.outputs / _TILE) if self.by_channels else 0  # else they stay in L1
        return rows * self.outputs * weights * _PRODUCT + blocks * (_BLOCK + read * _READ)


def _share(count: int, cores: int) -> int:
    """What a core has of something, as TT-NN deals it out: to so many cores that less than a share is left over."""
    while -count % cores >= math.ceil(count / cores) and cores > 1:
        cores -= 1
    return math.ceil(count / cores)
