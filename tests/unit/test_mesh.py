"""How a model is split over the chips of a mesh."""

import pytest

from tt_flux_kontext.backend import choose
from tt_flux_kontext.device import open_device
from tt_flux_kontext.mesh import Mesh

pytestmark = pytest.mark.skipif(choose() != "emulated", reason="the chips that there are have one form")


@pytest.mark.parametrize(
    "system,split,width,fused",
    [
        ("n300", (1, 2), 3072, True),
        ("n300", (2, 1), 3072, False),  # features are not split
        ("n300", (1, 2), 0, False),  # no stream
        ("n300", (1, 2), 128, True),
        ("n300", (1, 2), 192, False),  # three tiles a chip
        ("n300", (1, 2), 96, False),  # a tile and a half
        ("n300", (1, 2), 3584, True),
        ("n300", (1, 2), 4096, False),  # of which the norm would take too much memory
        ("t3k", (4, 2), 3072, True),
        ("t3k", (2, 4), 3072, True),
        ("galaxy", (8, 4), 3072, True),
    ],
)
def test_which_residual_streams_are_split(system, split, width, fused):
    with open_device(f"emulated:{system}") as device:
        parallel = Mesh(device).split(split, width)
        assert parallel.fused is fused
        features = parallel.features()
        assert (features.sp, features.tp, features.fused) == (1, parallel.tp, fused)


def test_semaphores_and_buffers_are_used_in_turns():
    with open_device("emulated:n300") as device:
        mesh = Mesh(device)
        first, second, third = (mesh.semaphores("norm", 1) for _ in range(3))
        assert not set(first) & set(second) and third is first
        assert not set(mesh.semaphores("product", 1)) & {*first, *second}
