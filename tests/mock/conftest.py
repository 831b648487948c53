"""All tests in this folder need real TT-NN. The longest job, planning edits of all sizes, begins before the first."""

from concurrent.futures import Future

import pytest
import torch

from tt_flux_kontext.planner.plan import Plan, Request, plan
from tt_flux_kontext.resolution import PREFERRED_KONTEXT_RESOLUTIONS

SQUARE = (1024, 1024)
SYSTEM = "n150"  # where the usual edit is planned; tests/perf has it on all systems

# All buckets but the square have a token count that fills no tile. Each is the reference's size here or the result's.
WIDE = [(height, width) for width, height in PREFERRED_KONTEXT_RESOLUTIONS if width > height]
BUCKETS = [
    Request(size=(width, height), references=[(height, width)], precision="bfp8", images=images)
    for (height, width), images in zip(WIDE, (2, 1, 1, 1, 1, 1, 1, 1), strict=True)
]
SOME, OTHERS = BUCKETS[::3], BUCKETS[1::3] + BUCKETS[2::3]  # what every run has, and what slow ones have besides
ON_P150 = [
    Request((512, 512), [(512, 512), (768, 512)], "bf16", text_tokens=77, masked=True),
    Request(SQUARE, [], "bf16"),  # text to image
]
TOO_LARGE = Request(SQUARE, [SQUARE], "bf16")


@pytest.fixture(scope="session", autouse=True)
def everything_here_needs_ttnn(needs_ttnn):
    pass


@pytest.fixture(scope="package", autouse=True)
def begin_planning(request):
    """In the background, where it takes both processors: more threads here would only wait for each other."""
    if any("plans" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("plans_begun")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plans_begun(begin_square_plan, background) -> list[Future]:
    """Edits of several sizes: a list for each process with a device of its own."""
    jobs = (SYSTEM, SOME[::2]), ("p150", ON_P150), (SYSTEM, SOME[1::2] + [TOO_LARGE])
    begun = [background.submit(plan, *job) for job in jobs]
    begin_square_plan(SYSTEM)
    return begun


@pytest.fixture(scope="session")
def plans(square_plan, plans_begun) -> list[Plan]:
    """Edits of several sizes, and last the one that is too large."""
    return [square_plan(SYSTEM)] + [each for job in plans_begun for each in job.result()]
