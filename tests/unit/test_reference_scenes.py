"""Scenes, edits and the rule of success."""

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reference.evaluate import evaluate, has_colours, judge, report
from reference.scenes import (
    SIDE,
    changed_region,
    draw,
    draw_kinds,
    edits,
    family,
    held_out_descriptions,
    held_out_edits,
    is_held_out,
)
from reference.wording import COLOURS, EDIT_KINDS, SHAPES

families = st.integers(0, 10**6).map(lambda seed: family(Random(seed)))


@given(families)
@settings(max_examples=30, deadline=None)
def test_scenes_have_one_to_three_distinct_shapes_inside_the_picture(scenes):
    assert len(set(scenes)) == len(scenes)
    for scene in scenes:
        kinds = [shape.kind for shape in scene.shapes]
        assert 1 <= len(kinds) <= 3 and len(set(kinds)) == len(kinds)
        for shape in scene.shapes:
            assert shape.colour != scene.ground
            assert shape.radius <= min(shape.x, shape.y) and max(shape.x, shape.y) <= SIDE - shape.radius


@given(families)
@settings(max_examples=30, deadline=None)
def test_an_edit_changes_what_it_says_and_nothing_else(scenes):
    for edit in edits(scenes, Random(0))[:8]:
        sentence = edit.instruction.lower()
        for change in edit.changes:
            assert all(word in sentence for word in (change.shape, change.to) if word)
        before, after = draw(edit.before), draw(edit.after)
        changed = changed_region(before, after)
        assert changed.any()
        if all(change.kind != "background" for change in edit.changes):
            untouched = set(edit.before.shapes) & set(edit.after.shapes)
            for shape in untouched:
                assert not changed[int(shape.y), int(shape.x)]
            assert changed.mean() < 0.5


def test_a_seed_gives_the_same_family_and_sentences():
    one, two = (edits(family(rng), rng) for rng in (Random(3), Random(3)))
    assert one == two


def test_pictures_are_anti_aliased_and_show_the_palette():
    scene = family(Random(0))[0]
    picture, kinds = np.asarray(draw(scene)), draw_kinds(scene)
    assert picture.shape == (SIDE, SIDE, 3)
    shape = scene.shapes[0]
    centre = int(shape.y), int(shape.x)
    assert tuple(picture[centre]) == COLOURS[shape.colour]
    assert kinds[centre] == 1 + SHAPES.index(shape.kind)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1 + len(scene.shapes)


def test_held_out_edits_are_balanced_and_reserved():
    chosen = held_out_edits(30)
    assert [edit.kind for edit in chosen] == list(EDIT_KINDS) * 5
    assert all(is_held_out(edit.instruction) for edit in chosen)
    assert chosen == held_out_edits(30) != held_out_edits(30, seed=1)


def test_dress_does_not_move_a_sentence_into_training():
    assert is_held_out("paint the star black") == is_held_out("Paint the star black.")


def test_wording_varies():
    sentences = {edit.instruction for seed in range(40) for edit in edits(family(Random(seed)), Random(seed))}
    assert len(sentences) > 400


def test_the_right_picture_succeeds_and_wrong_ones_fail():
    for edit in held_out_edits(12):
        before, target = draw(edit.before), draw(edit.after)
        assert judge(before, target, target).success
        assert not judge(before, target, before).success
        other = draw(replace(edit.after, ground=next(c for c in COLOURS if c != edit.after.ground)))
        assert not judge(before, target, other).success
        assert not judge(before, target, Image.new("RGB", target.size, "grey")).success


def test_colours_are_found_wherever_shapes_stand():
    for scene, sentence in held_out_descriptions(12):
        (shape,) = scene.shapes
        assert is_held_out(sentence) and {shape.colour, scene.ground} < set(re.findall(r"\w+", sentence.lower()))
        assert has_colours(scene, draw(scene)) and has_colours(scene, draw(scene).rotate(180))
        other = next(colour for colour in COLOURS if colour not in (scene.ground, shape.colour))
        assert not has_colours(scene, draw(replace(scene, ground=other)))
        assert not has_colours(scene, draw(replace(scene, slots=(replace(shape, colour=other),))))
        assert not has_colours(scene, Image.new("RGB", (SIDE, SIDE), COLOURS[scene.ground]))


def test_pictures_of_other_sizes_are_refused():
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="one size"):
        judge(picture, picture, Image.new("RGB", (8, 9)))


def test_rates_tell_a_good_pipeline_from_one_that_does_nothing():
    chosen = held_out_edits(12)
    targets = iter([draw(edit.after) for edit in chosen])
    good = evaluate(lambda pictures, sentences: [next(targets) for _ in pictures], chosen, batch=5)
    idle = evaluate(lambda pictures, sentences: pictures, chosen)
    assert "100.0%  12 of 12" in report(chosen, good) and "failed" not in report(chosen, good)
    assert report(chosen, idle).count("failed: ") == 12
