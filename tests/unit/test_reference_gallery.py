"""The README's pictures show what the pipelines made."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from reference.gallery import TURNS, edits_sheet, lora_sheet, turns_sheet
from reference.scenes import SIDE, changed_region
from reference.wording import EDIT_KINDS


def paint(colour: str):
    """A pipeline whose every result is of one colour."""
    return lambda pictures, sentences: [Image.new("RGB", (SIDE, SIDE), colour) for _ in pictures]


def shares(sheet: Image.Image) -> list[float]:
    """How many pictures' worth of pixels are red, and green."""
    pixels = np.asarray(sheet)
    return [float((pixels == colour).all(-1).sum()) / SIDE**2 for colour in ((255, 0, 0), (0, 255, 0))]


def test_every_edit_is_shown_by_both():
    assert shares(edits_sheet(paint("red"), paint("lime"))) == [len(EDIT_KINDS), len(EDIT_KINDS)]


def test_each_turn_starts_from_the_one_before():
    seen = []

    def darken(pictures, sentences):
        seen.append((pictures[0], sentences[0]))
        return [picture.point(lambda value: value // 2) for picture in pictures]

    assert shares(turns_sheet(darken, paint("lime"))) == [0, len(TURNS)]
    assert [sentence for _, sentence in seen] == list(TURNS)
    (first, _), (second, _), (third, _) = seen
    assert changed_region(first, second).any() and changed_region(second, third).any()
    assert second == first.point(lambda value: value // 2)


def test_the_lora_comes_between_the_rows():
    class Pipe:
        colour = "red"

        def __call__(self, image, **arguments):
            return SimpleNamespace(images=paint(self.colour)(image, arguments["prompt"]))

        def load_lora_weights(self, file):
            assert file.name == "heart.safetensors"
            self.colour = "lime"

    assert shares(lora_sheet(Pipe())) == [len(EDIT_KINDS) - 1, len(EDIT_KINDS) - 1]
