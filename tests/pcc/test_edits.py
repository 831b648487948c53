"""Did the edit work? The trained tiny checkpoint on scenes and sentences that its training never saw."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from reference.evaluate import EditPictures, Outcome, editor, evaluate, has_colours, report, successes
from reference.pipeline import TINY_KONTEXT, load
from reference.scenes import Edit, held_out_descriptions, held_out_edits
from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.precision import PRECISIONS

STEPS = 8  # enough for these pictures
EDITS = held_out_edits(12)
LEAST, CHANCE = 10, 2  # how many succeed: seen are 11, and 0 and 1 in the controls
MANY, MANY_STEPS = held_out_edits(500), 20  # of the published rates


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name != "bfp8_mixed")) for name in PRECISIONS],
)
def pipe(request):
    with open_device() as device:
        pipe = FluxKontextPipeline.from_pretrained(TINY_KONTEXT, device=device, precision=request.param)
        pipe.set_progress_bar_config(disable=True)
        yield pipe


def outcomes(edit_pictures: EditPictures, edits: Sequence[Edit]) -> list[Outcome]:
    found = evaluate(edit_pictures, edits)
    print(report(edits, found))
    return found


def count(edit_pictures: EditPictures, edits: Sequence[Edit]) -> int:
    return sum(outcome.success for outcome in outcomes(edit_pictures, edits))


def test_edits_succeed(pipe):
    assert count(editor(pipe, STEPS), EDITS) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("pipe", ["bf16"], indirect=True)
def test_no_edit_succeeds_with_the_sentence_of_another(pipe):
    others = [replace(edit, instruction=EDITS[i - 1].instruction) for i, edit in enumerate(EDITS)]
    assert count(editor(pipe, STEPS), others) <= CHANCE


@pytest.mark.slow
@pytest.mark.parametrize("pipe", ["bf16"], indirect=True)
def test_no_edit_succeeds_without_its_reference(pipe):
    edit_pictures = editor(pipe, STEPS)

    def blind(pictures: Sequence[Image.Image], sentences: Sequence[str]) -> Sequence[Image.Image]:
        return edit_pictures([None] * len(pictures), sentences)

    assert count(blind, EDITS) <= CHANCE


@pytest.mark.slow
@pytest.mark.parametrize("pipe", ["bf16"], indirect=True)
def test_text_alone_gives_the_colours_that_it_names(pipe):
    scenes, sentences = zip(*held_out_descriptions(12))
    pictures = editor(pipe, STEPS)([None] * 12, sentences)
    assert sum(map(has_colours, scenes, pictures)) >= 9
    assert sum(map(has_colours, scenes[1:] + scenes[:1], pictures)) <= CHANCE


@pytest.fixture(scope="module")
def diffusers_rates() -> dict[str, float]:
    return rates(load(TINY_KONTEXT))


def rates(pipe) -> dict[str, float]:
    """By kind, and of all."""
    found = outcomes(editor(pipe, MANY_STEPS), MANY)
    return {kind: np.mean(good) for kind, good in successes(MANY, found).items()}


@pytest.mark.slow
def test_rates_of_diffusers(diffusers_rates):
    assert diffusers_rates["all"] >= 0.85 and min(diffusers_rates.values()) >= 0.70


@pytest.mark.slow
def test_rates_are_those_of_diffusers(pipe, diffusers_rates):
    assert abs(rates(pipe)["all"] - diffusers_rates["all"]) <= 0.02
