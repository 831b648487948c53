"""Procedural scenes, the changes between them, and edits: picture before, sentence, picture after.

A scene is one to three coloured shapes, all of different kinds, apart from each other, on a ground of another colour.
Edits come in families: variants of one scene, each a single change away from it. Any two members that differ by one or
two changes make an edit, so a few pictures give many edits. A shape that a sentence adds has a fixed radius and stands
at the place that the sentence names, or in the middle; therefore every edit has exactly one right picture.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from .wording import CHANGE_KINDS, COLOURS, EDIT_KINDS, HEART, PLACES, SHAPES, Change, caption, instruction

SIDE = 128
"""Width and height of every picture in pixels."""
ADDED_RADIUS = 20.0
"""Radius of an added shape in pixels."""

_RADII = (15.0, 27.0)
_GAP = 4.0
_SUPERSAMPLING = 4
_CENTRES = {
    "middle": (64.0, 64.0),
    "top left": (28.0, 28.0),
    "top right": (100.0, 28.0),
    "bottom left": (28.0, 100.0),
    "bottom right": (100.0, 100.0),
}


@dataclass(frozen=True)
class Shape:
    """A coloured shape: kind from SHAPES or HEART, colour from COLOURS, centre and circumscribed radius in pixels."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A ground's colour and shapes by slot; variants of a scene keep a shape in its slot, None where it is absent."""

    ground: str
    slots: tuple[Shape | None, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(shape for shape in self.slots if shape)


@dataclass(frozen=True)
class Edit:
    """An edit of a scene: what was, what is asked for, what it should become."""

    before: Scene
    after: Scene
    changes: tuple[Change, ...]
    instruction: str

    @property
    def kind(self) -> str:
        """One of EDIT_KINDS."""
        return self.changes[0].kind if len(self.changes) == 1 else "two"


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of SIDE x SIDE pixels, anti-aliased."""
    return _paint(scene, COLOURS[scene.ground], lambda shape: COLOURS[shape.colour], "RGB")


def draw_kinds(scene: Scene) -> np.ndarray:
    """A map [SIDE, SIDE] of what each pixel shows: 0 the ground, 1 + i the shape SHAPES[i]."""
    return np.asarray(_paint(scene, 0, lambda shape: 1 + SHAPES.index(shape.kind), "L", zoom=1))


def changed_region(before: Image.Image, after: Image.Image) -> np.ndarray:
    """Mask [height, width] of the pixels in which two pictures of one size differ visibly, by more than 8 of 255."""
    difference = np.asarray(before, dtype=np.int16) - np.asarray(after, dtype=np.int16)
    return np.abs(difference).max(axis=-1) > 8


def family(rng: Random, variants: int = 5, shapes: Sequence[str] = SHAPES) -> list[Scene]:
    """A random scene and variants of it, each one change away from it; all of different appearance."""
    base = _random_scene(rng, shapes)
    scenes = [base]
    while len(scenes) <= variants:
        scene = _vary(base, rng, shapes)
        if scene not in scenes:
            scenes.append(scene)
    return scenes


def difference(before: Scene, after: Scene) -> tuple[Change, ...] | None:
    """The changes that lead from one member of a family to another, or None where no sentence can say it.

    A slot that changes in two ways at once, or a shape that appears elsewhere than at a named place, can't be said.
    """
    changes = []
    for old, new in zip(before.slots, after.slots):
        if old == new:
            continue
        change = _slot_change(old, new)
        if change is None:
            return None
        changes.append(change)
    if before.ground != after.ground:
        changes.append(Change("background", to=after.ground))
    kinds = [shape.kind for shape in before.shapes]
    for change in changes:  # a new shape of a kind that only leaves by the other change would be ambiguous
        if (change.kind == "add" and change.shape in kinds) or (change.kind == "reshape" and change.to in kinds):
            return None
    return tuple(changes)


def edits(scenes: list[Scene], rng: Random) -> list[Edit]:
    """All edits between members of a family that one sentence can ask for, in random order and wording."""
    found = []
    for before in scenes:
        for after in scenes:
            changes = difference(before, after)
            if changes and len(changes) <= 2:
                changes = tuple(rng.sample(changes, len(changes)))
                found.append(Edit(before, after, changes, instruction(changes, rng)))
    rng.shuffle(found)
    return found


def turns(rng: Random, count: int) -> list[Edit]:
    """Edits of one change in a row, each of the scene that the one before gives, by sentences that are held out."""
    scene, chain = _random_scene(rng), []
    while len(chain) < count:
        after = _vary(scene, rng)
        changes = difference(scene, after)
        if changes and is_held_out(sentence := instruction(changes, rng)):
            chain.append(Edit(scene, after, changes, sentence))
            scene = after
    return chain


def describe(scene: Scene, rng: Random) -> str:
    """A sentence that describes the scene."""
    shapes = [(shape.colour, shape.kind) for shape in scene.shapes]
    return caption(scene.ground, rng.sample(shapes, len(shapes)), rng)


def is_held_out(sentence: str) -> bool:
    """Whether a sentence is reserved for evaluation: one in eight, whatever the scene, never trained on."""
    return zlib.crc32(sentence.strip(" .").lower().encode()) % 8 == 0


def held_out_edits(count: int, seed: int = 0, new: str = "") -> list[Edit]:
    """Edits for evaluation: scenes of their own, sentences that training never sees, kinds of edits in equal number.

    With a `new` shape, beside SHAPES, all sentences name it; so none is of the background alone.
    """
    rng = Random(f"held out {new}{seed}")
    shapes = (*SHAPES, new) if new else SHAPES
    kinds = [kind for kind in EDIT_KINDS if not (new and kind == "background")]
    chosen = []
    while len(chosen) < count:
        kind = kinds[len(chosen) % len(kinds)]
        found = [edit for edit in edits(family(rng, shapes=shapes), rng) if new in edit.instruction.lower()]
        chosen += [edit for edit in found if edit.kind == kind and is_held_out(edit.instruction)][:1]
    return chosen


def held_out_descriptions(count: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Scenes of one shape, and sentences that describe them and that training never sees."""
    rng = Random(f"held out descriptions {seed}")
    chosen = []
    while len(chosen) < count:
        scene = _random_scene(rng)
        sentence = describe(scene, rng)
        if len(scene.shapes) == 1 and is_held_out(sentence):
            chosen.append((scene, sentence))
    return chosen


def _paint(scene: Scene, ground, fill: Callable[[Shape], object], mode: str, zoom: int = _SUPERSAMPLING) -> Image.Image:
    """The scene in any palette, drawn `zoom` times as large and then reduced."""
    picture = Image.new(mode, (SIDE * zoom, SIDE * zoom), ground)
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        x, y, radius = shape.x * zoom, shape.y * zoom, shape.radius * zoom
        if shape.kind == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill(shape))
        else:
            pen.polygon([(x + radius * u, y + radius * v) for u, v in _corners(shape.kind)], fill=fill(shape))
    return picture.reduce(zoom)


def _random_scene(rng: Random, shapes: Sequence[str] = SHAPES) -> Scene:
    kinds = rng.sample(shapes, rng.randint(1, 3))
    ground, *colours = rng.sample(sorted(COLOURS), 1 + len(kinds))
    while True:
        slots = []
        for kind, colour in zip(kinds, colours):
            shape = _find_room(Shape(kind, colour, 0, 0, 0), slots, rng)
            if shape is None:
                break
            slots.append(shape)
        else:
            # An empty slot per place: what a variant adds, another may still find there.
            return Scene(ground, tuple(slots) + (None,) * len(PLACES))


def _find_room(shape: Shape, others: list[Shape], rng: Random) -> Shape | None:
    """The shape with a random place and size, apart from the others and the border; None after too many trials."""
    for _ in range(50):
        radius = rng.uniform(*_RADII)
        low, high = radius + 2, SIDE - radius - 2
        shape = replace(shape, x=rng.uniform(low, high), y=rng.uniform(low, high), radius=radius)
        if all(_apart(shape, other) for other in others):
            return shape
    return None


def _vary(scene: Scene, rng: Random, shapes: Sequence[str] = SHAPES) -> Scene:
    """The scene after one random change, or the scene itself where the drawn change is not possible."""
    kind = rng.choice(CHANGE_KINDS)
    slot, shape = rng.choice([(slot, shape) for slot, shape in enumerate(scene.slots) if shape])
    used = {scene.ground, *(shape.colour for shape in scene.shapes)}
    colour = rng.choice(sorted(set(COLOURS) - used))
    new_kind = rng.choice(sorted(set(shapes) - {shape.kind for shape in scene.shapes}))
    if kind == "background":
        return replace(scene, ground=colour)
    if kind == "recolour":
        return _with_slot(scene, slot, replace(shape, colour=colour))
    if kind == "reshape":
        return _with_slot(scene, slot, replace(shape, kind=new_kind))
    if kind == "remove" and len(scene.shapes) > 1:
        return _with_slot(scene, slot, None)
    if kind == "add" and len(scene.shapes) < 3:
        place = rng.randrange(len(PLACES))
        added = Shape(new_kind, colour, *_CENTRES[PLACES[place]], ADDED_RADIUS)
        if all(_apart(added, other) for other in scene.shapes):
            return _with_slot(scene, len(scene.slots) - len(PLACES) + place, added)
    return scene


def _slot_change(old: Shape | None, new: Shape | None) -> Change | None:
    """The change of a slot whose shape differs, or None where no sentence can say it."""
    if new is None:
        return Change("remove", old.kind, old.colour)
    if old is None:
        for place, centre in _CENTRES.items():
            if centre == (new.x, new.y) and new.radius == ADDED_RADIUS:
                return Change("add", new.kind, new.colour, place=place)
        return None
    if old.kind == new.kind:
        return Change("recolour", old.kind, old.colour, to=new.colour)
    if old.colour == new.colour:
        return Change("reshape", old.kind, old.colour, to=new.kind)
    return None


def _with_slot(scene: Scene, slot: int, shape: Shape | None) -> Scene:
    return replace(scene, slots=scene.slots[:slot] + (shape,) + scene.slots[slot + 1 :])


def _apart(a: Shape, b: Shape) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + _GAP


def _corners(kind: str) -> list[tuple[float, float]]:
    """Corners of a shape of radius 1 around the origin, the first one pointing up."""
    if kind == "square":
        return [(0.8 * u, 0.8 * v) for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    if kind == HEART:
        return [_heart(2 * math.pi * i / 48) for i in range(48)]
    count, inner = {"triangle": (3, None), "star": (5, 0.45)}[kind]
    radii = (1,) if inner is None else (1, inner)
    total = count * len(radii)
    angles = [2 * math.pi * i / total for i in range(total)]
    return [(radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a)) for i, a in enumerate(angles)]


def _heart(angle: float) -> tuple[float, float]:
    """A point of a heart's outline, from the notch at 0 to the tip at pi."""
    height = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
    return 0.94 * math.sin(angle) ** 3, -(height + 1) / 19
