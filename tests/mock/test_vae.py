"""The full-size VAE on real TT-NN, on one chip and split over many: it takes every call, and it fits."""

import random

import pytest

from tt_flux_kontext.planner.mock_device import run
from tt_flux_kontext.resolution import PREFERRED_KONTEXT_RESOLUTIONS

MOST_OPS = {"vae encoder": 1500, "vae decoder": 2600}  # device operations, of a trained size
SYSTEMS = {
    "n150": (1, 1),
    "n300": (1, 2),
    "t3k": (1, 8),
    "galaxy": (8, 4),
    "p150": (1, 1),
    "p300": (1, 2),
    "p150x4": (1, 4),
}
BUCKETS = [(height, width) for width, height in PREFERRED_KONTEXT_RESOLUTIONS]
OTHERS = [(512, 512), (256, 2048), (2048, 256)]
ODD = (944, 1104)  # a bucket whose rows fill no tiles at any level
TIGHT = (976, 608)  # where a convolution's output in tiles and one that isn't have just enough room


def any_sizes(seed: int, count: int = 24) -> list[tuple[int, int]]:
    """Sizes that edits can have, of up to about 1024 x 1024 pixels."""
    draw, sizes = random.Random(seed), []
    while len(sizes) < count:
        height, width = (16 * draw.randint(4, 128) for _ in "hw")
        if 128**2 <= height * width <= 1.1 * 1024**2:
            sizes.append((height, width))
    return sizes


@pytest.mark.parametrize(
    "system, sizes",
    [
        ("t3k", [ODD]),
        ("n150", [TIGHT]),
        *(pytest.param(system, BUCKETS + OTHERS, marks=pytest.mark.slow) for system in SYSTEMS),
        *(pytest.param(system, any_sizes(i), marks=pytest.mark.slow) for i, system in enumerate(SYSTEMS)),
    ],
)
def test_takes_all_calls_and_fits(system, sizes):
    phases = iter(run(system, "tests.mock.whole_vae", {"mesh": SYSTEMS[system], "sizes": sizes}))
    for size in sizes:
        for name, most in MOST_OPS.items():
            phase = next(phases)
            assert phase["phase"] == f"{name}, {size[0]} x {size[1]}"
            assert phase["ops"] <= most or size not in BUCKETS, phase
            assert phase["used"] <= phase["reserved"], phase
