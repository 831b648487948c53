"""Edits in a row, and what is expected after each."""

from random import Random

import numpy as np
from PIL import Image

from reference.scenes import draw, is_held_out, turns
from reference.turns import Engine, in_latents, make_chains, outcomes, rows, through_pictures, without_edit

CHAINS = make_chains(3, 12)


def perfect(log: list) -> Engine:
    """Knows the right pictures, which are its latents too; `log` gets what is converted and asked for."""
    right = [[draw(edit.after) for edit in turn] for turn in zip(*CHAINS)]

    def edit(pictures, sentences, seed):
        log.append("edit")
        assert [np.asarray(p).tobytes() for p in pictures] == [draw(c[seed - 1].before).tobytes() for c in CHAINS]
        assert list(sentences) == [chain[seed - 1].instruction for chain in CHAINS]
        return right[seed - 1]

    def convert(name):
        return lambda pictures: log.append(name) or pictures

    return Engine(edit, convert("encode"), convert("decode"))


def test_each_turn_goes_on_from_the_one_before():
    for seed in range(20):
        chain = turns(Random(seed), 12)
        assert all(one.after == other.before for one, other in zip(chain, chain[1:]))
        assert all(len(edit.changes) == 1 and is_held_out(edit.instruction) for edit in chain)
        assert all(1 <= len(edit.after.shapes) <= 3 for edit in chain)


def test_latents_are_never_encoded_again():
    log = []
    judged = outcomes(perfect(log), in_latents, CHAINS)
    assert log == ["encode", *12 * ["edit", "decode"]]
    assert all(outcome.success for turn in judged for outcome in turn)


def test_pictures_are_encoded_in_each_turn():
    log = []
    judged = outcomes(perfect(log), through_pictures, CHAINS)
    assert log == 12 * ["encode", "edit", "decode"]
    assert all(outcome.success for turn in judged for outcome in turn)


def test_without_edits_the_first_scene_is_expected():
    log = []
    judged = outcomes(perfect(log), without_edit, CHAINS)
    assert log == 12 * ["encode", "decode"]
    assert {outcome.kept_psnr for turn in judged for outcome in turn} == {float("inf")}


def test_a_wrong_turn_counts_from_then_on():
    def edit(pictures, sentences, seed):
        return [
            Image.new("RGB", picture.size) if seed == 4 else draw(c[seed - 1].after)
            for picture, c in zip(pictures, CHAINS)
        ]

    table = list(rows(Engine(edit, list, list), CHAINS))
    right, so_far, unspoilt = zip(*(map(int, row.split()[3:6]) for row in table[1:6]))
    assert right == (3, 3, 0, 3, 3) and so_far == (3, 6, 9, 21, 33) and unspoilt == (3, 3, 0, 0, 0)
