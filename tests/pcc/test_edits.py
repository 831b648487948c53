"""Did the edit work? The trained tiny checkpoint on scenes and sentences that its training never saw."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from reference.evaluate import EditPictures, editor, evaluate, has_colours, report
from reference.pipeline import TINY_KONTEXT
from reference.scenes import Edit, held_out_descriptions, held_out_edits
from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.precision import PRECISIONS

STEPS = 8  # enough for these pictures
EDITS = held_out_edits(24)
HALF = EDITS[:12]
LEAST, CHANCE = 22, 2  # how many succeed: seen are 23 of 24, and 0 and 1 of 12 in the controls


@pytest.fixture(scope="module", params=PRECISIONS)
def edit_pictures(request) -> EditPictures:
    with open_device() as device:
        pipe = FluxKontextPipeline.from_pretrained(TINY_KONTEXT, device=device, precision=request.param)
        pipe.set_progress_bar_config(disable=True)
        yield editor(pipe, STEPS)


def successes(edit_pictures: EditPictures, edits: Sequence[Edit]) -> int:
    outcomes = evaluate(edit_pictures, edits)
    print(report(edits, outcomes))
    return sum(outcome.success for outcome in outcomes)


def test_edits_succeed(edit_pictures):
    assert successes(edit_pictures, EDITS) >= LEAST


@pytest.mark.parametrize("edit_pictures", ["bf16"], indirect=True)
def test_no_edit_succeeds_with_the_sentence_of_another(edit_pictures):
    others = [replace(edit, instruction=HALF[i - 1].instruction) for i, edit in enumerate(HALF)]
    assert successes(edit_pictures, others) <= CHANCE


@pytest.mark.parametrize("edit_pictures", ["bf16"], indirect=True)
def test_no_edit_succeeds_without_its_reference(edit_pictures):
    def blind(pictures: Sequence[Image.Image], sentences: Sequence[str]) -> Sequence[Image.Image]:
        return edit_pictures([None] * len(pictures), sentences)

    assert successes(blind, HALF) <= CHANCE


@pytest.mark.parametrize("edit_pictures", ["bf16"], indirect=True)
def test_text_alone_gives_the_colours_that_it_names(edit_pictures):
    scenes, sentences = zip(*held_out_descriptions(12))
    pictures = edit_pictures([None] * 12, sentences)
    assert sum(map(has_colours, scenes, pictures)) >= 9
    assert sum(map(has_colours, scenes[1:] + scenes[:1], pictures)) <= CHANCE
