"""Cuts of convolutions; whether TT-NN has the room for them is asked in tests/mock."""

import math

import pytest

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.slices import Conv, cut

WORMHOLE, BLACKHOLE = (8, 8), (11, 10)


def cut_of(grid: tuple[int, int], inputs: int, outputs: int, height: int, width: int, kernel: int = 3):
    return cut(Conv(inputs, outputs, kernel, 1, (height, width), width % 32 == 0), ttnn.CoreCoord(*grid))


@pytest.mark.parametrize("grid", [WORMHOLE, BLACKHOLE])
def test_small_maps_and_products_stay_whole(grid):
    assert cut_of(grid, 128, 128, 64, 64) is None
    assert cut_of(grid, 512, 512, 16, 16) is None
    assert cut_of(grid, 512, 256, 1024, 1024, kernel=1) is None


def test_few_channels_are_not_shared_out():
    """Four tiles of channels would leave half of eight columns of cores without any."""
    assert not cut_of(WORMHOLE, 128, 128, 1024, 1024).by_channels
    assert cut_of(WORMHOLE, 512, 512, 512, 512).by_channels


@pytest.mark.parametrize("height, width", [(512, 512), (416, 624), (472, 552), (376, 696), (336, 784), (440, 592)])
def test_blocks_are_large_in_all_slices(height, width):
    """Weights of 512 channels are read for each block: so it has 12 tiles at least, of each width that slices have."""
    found = cut_of(WORMHOLE, 512, 512, height, width)
    for columns in (width // found.slices, math.ceil(width / found.slices)):
        rows = math.ceil(math.ceil(height * columns / 32) / WORMHOLE[1])  # of tiles, on each row of cores
        assert rows % (found.block // 32) == 0
    assert found.block >= 12 * 32
