"""Stage 3 of the recipe: the text encoders learn to understand the sentences before they meet the transformer.

From CLIP's pooled vector, and from every token that T5 gives, padding included, linear heads (thrown away later) read
the meaning of a sentence as a table: for each kind of shape what shall happen to it, and the new ground's colour.
"""

from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from transformers import CLIPTextModel, T5EncoderModel

from ..scenes import Edit, describe, edits, family, is_held_out
from ..tokenizers import T5_LENGTH
from ..wording import CHANGE_KINDS, COLOURS, PLACES, SHAPES, Change
from .loop import fit

_COLOURS = tuple(COLOURS)
_SHAPE_COLUMNS = (CHANGE_KINDS, _COLOURS, SHAPES, PLACES)
_CLASSES = [1 + len(values) for values in _SHAPE_COLUMNS] * len(SHAPES) + [1 + len(_COLOURS)]


class TextEncoders(torch.nn.Module):
    """Both text encoders with their tokenizers: sentences in, what the transformer takes out."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel, tokenizers: tuple):
        super().__init__()
        self.clip, self.t5, self.tokenizers = clip, t5, tokenizers

    def forward(self, sentences: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sentences to pooled [B, clip width] and tokens [B, length, T5 width], padded or cut to `length`.

        CLIP is causal and pools at the end of the sentence, so its padding is left out.
        """
        clip_ids = self.tokenizers[0](sentences, padding="longest", truncation=True, return_tensors="pt").input_ids
        t5_ids = self.tokenizers[1](
            sentences, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids)[0]


def train_text(encoders: TextEncoders, file: Path, steps: int, seed: int = 0, batch: int = 128) -> TextEncoders:
    """Trains the text encoders on sentences alone; returns them averaged.

    Args:
        encoders: with fresh weights; changed in place.
        file: the state of the training, to resume from.
    """
    heads = [torch.nn.Linear(encoders.clip.config.hidden_size, sum(_CLASSES))]
    heads += [torch.nn.Linear(encoders.t5.config.d_model, sum(_CLASSES))]
    model = torch.nn.ModuleDict({"encoders": encoders, "heads": torch.nn.ModuleList(heads)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)

    def loss(step: int) -> torch.Tensor:
        rng = Random(f"text {seed} {step}")
        length = text_length(rng)
        count = batch if length < T5_LENGTH else batch // 16
        sentences, meanings = zip(*(_example(rng) for _ in range(count)))
        pooled, tokens = model["encoders"](list(sentences), length)
        target = torch.tensor(meanings)
        spread = target.unsqueeze(1).expand(-1, length, -1)
        return _reading_loss(model["heads"][0](pooled), target) + _reading_loss(model["heads"][1](tokens), spread)

    return fit("text", model, [optimizer], loss, steps, file, decay=0.995)["encoders"]


def text_length(rng: Random) -> int:
    """Text tokens of a training step: 48 or 56, which hold any sentence, or rarely 512, the pipeline's default."""
    return T5_LENGTH if rng.random() < 0.03 else rng.choice((48, 56))


def draw_edit(found: list[Edit], rng: Random) -> Edit:
    """One of the edits of a family, each kind being as likely as any other that is there, but none that is held out."""
    allowed = [edit for edit in found if not is_held_out(edit.instruction)]
    kind = rng.choice(sorted({edit.kind for edit in allowed}))
    return rng.choice([edit for edit in allowed if edit.kind == kind])


def _example(rng: Random) -> tuple[str, list[int]]:
    """A sentence, one in ten a description, and its meaning."""
    scenes = family(rng, variants=3)
    if rng.random() < 0.1:
        additions = [Change("add", shape.kind, shape.colour) for shape in scenes[0].shapes]
        return describe(scenes[0], rng), _meaning([*additions, Change("background", to=scenes[0].ground)])
    edit = draw_edit(edits(scenes, rng), rng)
    return edit.instruction, _meaning(edit.changes)


def _meaning(changes: list[Change] | tuple[Change, ...]) -> list[int]:
    """Class by column of the table: four columns for each kind of shape, then the ground's colour; 0 for nothing."""
    rows, ground = {shape: [0] * len(_SHAPE_COLUMNS) for shape in SHAPES}, 0
    for change in changes:
        if change.kind == "background":
            ground = 1 + _COLOURS.index(change.to)
            continue
        colour = change.to if change.kind == "recolour" else change.colour if change.kind == "add" else None
        shape = change.to if change.kind == "reshape" else None
        values = (change.kind, colour, shape, change.place)
        rows[change.shape] = [1 + names.index(v) if v else 0 for names, v in zip(_SHAPE_COLUMNS, values)]
    return [value for row in rows.values() for value in row] + [ground]


def _reading_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of all columns: logits [..., sum of classes], classes [..., columns]."""
    columns = logits.split(_CLASSES, dim=-1)
    losses = [F.cross_entropy(c.flatten(0, -2), classes[..., i].flatten()) for i, c in enumerate(columns)]
    return torch.stack(losses).mean()
