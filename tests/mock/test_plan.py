"""Whole edits with the full-size models on real TT-NN: it takes every call, and it fits."""

import os

import pytest

from tt_flux_kontext.planner.mock_device import MockError, available
from tt_flux_kontext.planner.plan import plan

SQUARE = (1024, 1024)
SPARE = 1_500_000_000  # bytes of DRAM that every phase must leave free on an N150


@pytest.fixture(autouse=True)
def needs_ttnn():
    if not available():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("this Python has no ttnn wheel (CPython 3.10 or 3.12)")


def names(phases) -> list[str]:
    return [phase.name for phase in phases]


PHASES = ["clip", "t5", "vae encoder", "modulation", "transformer weights", "step", "step", "vae decoder"]


def test_n150_edits_1024_square_in_bfp8():
    phases = plan("n150", SQUARE, SQUARE, "bfp8")
    assert names(phases) == PHASES
    assert min(phase.free for phase in phases) >= SPARE


def test_p150_edits_1024_square_in_bf16_with_nothing_evicted():
    phases = plan("p150", SQUARE, SQUARE, "bf16")
    assert names(phases) == PHASES
    kept = 27e9  # CLIP, T5, the VAE and the transformer without its modulation
    assert phases[-1].peak > kept


def test_n150_can_not_in_bf16():
    with pytest.raises(MockError, match="n150, in the call ttnn.empty(?s:.)*Out of Memory"):
        plan("n150", SQUARE, SQUARE, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize(
    "size,reference,arguments",
    [
        ((944, 1104), (832, 1248), {}),
        ((1568, 672), (1568, 672), {}),
        ((512, 512), (512, 512), {"text_tokens": 77}),
        (SQUARE, None, {}),
        ((768, 768), SQUARE, {"images": 2}),
    ],
    ids=["rows that fill no tiles", "tall", "small", "text to image", "two images"],
)
def test_other_edits_on_n150(size, reference, arguments):
    assert names(plan("n150", size, reference, "bfp8", **arguments)) == PHASES
