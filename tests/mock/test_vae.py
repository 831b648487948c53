"""The full-size VAE on real TT-NN, on one chip and split over many: it takes every call, and it fits."""

import pytest

from tt_flux_kontext.planner.mock_device import run
from tt_flux_kontext.resolution import PREFERRED_KONTEXT_RESOLUTIONS

MOST_OPS = {"encoder": 1500, "decoder": 2600}  # device operations, of whatever size
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


@pytest.mark.parametrize(
    "system, sizes",
    [
        ("t3k", [ODD]),
        *(pytest.param(system, BUCKETS + OTHERS, marks=pytest.mark.slow) for system in SYSTEMS),
    ],
)
def test_takes_all_calls_and_fits(system, sizes):
    phases = list(run(system, "tests.mock.whole_vae", {"mesh": SYSTEMS[system], "sizes": sizes}))
    assert len(phases) == 2 * len(sizes)
    for phase in phases:
        most = next(most for name, most in MOST_OPS.items() if name in phase["phase"])
        assert phase["ops"] <= most, phase
        assert phase["used"] <= phase["reserved"], phase
