"""The language of the tiny world: changes to a scene, and the sentences that ask for them."""

from dataclasses import dataclass
from random import Random

SHAPES = ("circle", "square", "triangle", "star")
HEART = "heart"
"""A shape beside SHAPES that the demo's weights were not trained on: its LoRA knows it."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 50),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
PLACES = ("middle", "top left", "top right", "bottom left", "bottom right")

_TEMPLATES = {
    "recolour": (
        "make the {shape} {to}",
        "paint the {shape} {to}",
        "colour the {shape} {to}",
        "turn the {shape} {to}",
        "change the {shape} to {to}",
        "change the colour of the {shape} to {to}",
        "the {shape} should be {to}",
    ),
    "background": (
        "change the background to {to}",
        "make the background {to}",
        "set the background to {to}",
        "turn the background {to}",
        "paint the background {to}",
        "use {a_to} background",
    ),
    "remove": (
        "remove the {shape}",
        "delete the {shape}",
        "erase the {shape}",
        "take away the {shape}",
        "take the {shape} out",
        "get rid of the {shape}",
    ),
    "add": (
        "add {a_shape}{place}",
        "draw {a_shape}{place}",
        "put {a_shape}{place}",
        "place {a_shape}{place}",
        "insert {a_shape}{place}",
    ),
    "reshape": (
        "turn the {shape} into {a_to}",
        "change the {shape} into {a_to}",
        "change the {shape} to {a_to}",
        "replace the {shape} with {a_to}",
        "make the {shape} {a_to}",
        "transform the {shape} into {a_to}",
    ),
}
_PLACE_TEMPLATES = (" in the {}", " at the {}", " on the {}")
_JOINTS = (" and ", ", then ", " and then ", ", ", " and also ")
_CAPTIONS = (
    "{shapes} on {a_ground} background",
    "a picture of {shapes} on {ground} ground",
    "{ground} background with {shapes}",
)

CHANGE_KINDS = tuple(_TEMPLATES)
"""Kinds of a single change."""
EDIT_KINDS = CHANGE_KINDS + ("two",)
"""Kinds of an instruction: one change of a kind, or two changes in one sentence."""


@dataclass(frozen=True)
class Change:
    """One change to a scene.

    Attributes:
        kind: one of CHANGE_KINDS.
        shape: the shape that is spoken of; for "add" the new one; None for "background".
        colour: that shape's colour before the change; for "add" the new one's; None for "background".
        to: the new colour ("recolour", "background") or the new shape ("reshape"), else None.
        place: one of PLACES for "add", else None.
    """

    kind: str
    shape: str | None = None
    colour: str | None = None
    to: str | None = None
    place: str | None = None


def instruction(changes: tuple[Change, ...], rng: Random) -> str:
    """A sentence that asks for one or two changes, its wording drawn from `rng`."""
    joint = rng.choice(_JOINTS)
    sentence = joint.join(_clause(change, rng) for change in changes)
    return _dress(sentence, rng)


def caption(ground: str, shapes: list[tuple[str, str]], rng: Random) -> str:
    """A sentence that describes a whole picture: the ground's colour and (colour, shape) pairs."""
    named = " and ".join(_with_article(f"{colour} {shape}") for colour, shape in shapes)
    template = rng.choice(_CAPTIONS)
    return _dress(template.format(shapes=named, ground=ground, a_ground=_with_article(ground)), rng)


def corpus(sentences: int = 4000, seed: int = 0) -> list[str]:
    """Sentences that cover the whole vocabulary, to train tokenizers on."""
    rng = Random(seed)
    return [_random_sentence(rng) for _ in range(sentences)]


def _random_sentence(rng: Random) -> str:
    colours, shapes = rng.sample(sorted(COLOURS), 3), rng.sample(SHAPES, 3)
    if rng.random() < 0.1:
        return caption(colours[0], list(zip(colours[1:], shapes)), rng)
    changes = []
    for kind, shape in zip(rng.sample(CHANGE_KINDS, rng.choice((1, 2))), shapes):
        to = {"recolour": colours[0], "background": colours[1], "reshape": shapes[2]}.get(kind)
        place = rng.choice(PLACES) if kind == "add" else None
        changes.append(Change(kind, None if kind == "background" else shape, colours[2], to, place))
    return instruction(tuple(changes), rng)


def _clause(change: Change, rng: Random) -> str:
    values = {"to": change.to, "place": ""}
    if change.kind == "add":
        values["a_shape"] = _with_article(f"{change.colour} {change.shape}")
        if change.place != "middle" or rng.random() < 0.5:
            values["place"] = rng.choice(_PLACE_TEMPLATES).format(change.place)
    elif change.shape:
        values["shape"] = f"{change.colour} {change.shape}" if rng.random() < 0.3 else change.shape
    if change.to:
        values["a_to"] = _with_article(change.to)
    return rng.choice(_TEMPLATES[change.kind]).format(**values)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _dress(sentence: str, rng: Random) -> str:
    if rng.random() < 0.1:
        sentence = f"please {sentence}"
    if rng.random() < 0.25:
        sentence = sentence[0].upper() + sentence[1:]
    if rng.random() < 0.25:
        sentence += "."
    return sentence
