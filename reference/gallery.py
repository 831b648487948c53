"""The README's pictures: one edit of each kind, edits of one picture in a row, and what a LoRA adds.

python -m reference.gallery [CHECKPOINT]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.metadata import save

from .evaluate import EditPictures, editor
from .lora import HEART_LORA
from .pipeline import TINY_KONTEXT, load
from .scenes import SIDE, Scene, Shape, draw, held_out_edits
from .wording import EDIT_KINDS, HEART

TURNS_START = Scene("white", (Shape("circle", "green", 44, 72, 25), Shape("square", "purple", 98, 92, 22)))
TURNS = ("make the circle red", "change the background to blue", "add a yellow star at the top right")

_MARGIN, _LINE, _LABEL = 10, 17, 74  # pixels: between pictures, of a line of text, for the rows' names
_FONT = 13


def edits_sheet(ours: EditPictures, theirs: EditPictures, seed: int = 0) -> Image.Image:
    """Columns of before, after by us and after by diffusers, under their instruction."""
    edits = held_out_edits(len(EDIT_KINDS), seed)
    before, sentences = [draw(edit.before) for edit in edits], [edit.instruction for edit in edits]
    rows = {"before": before, "ours": ours(before, sentences), "diffusers": theirs(before, sentences)}
    return _sheet(sentences, rows)


def turns_sheet(ours: EditPictures, theirs: EditPictures) -> Image.Image:
    """One picture after each of several instructions, each time from the result of the one before."""
    rows = {}
    for name, edit in (("ours", ours), ("diffusers", theirs)):
        rows[name] = [draw(TURNS_START)]
        for sentence in TURNS:
            rows[name] += edit(rows[name][-1:], [sentence])
    return _sheet(("", *TURNS), rows)


def lora_sheet(pipe: FluxKontextPipeline) -> Image.Image:
    """Columns of before, and after without and with the LoRA that knows hearts, which the pipeline has afterwards."""
    edits = held_out_edits(len(EDIT_KINDS) - 1, new=HEART)
    before, sentences = [draw(edit.before) for edit in edits], [edit.instruction for edit in edits]
    rows = {"before": before, "without": editor(pipe)(before, sentences)}
    pipe.load_lora_weights(HEART_LORA)
    rows["with LoRA"] = editor(pipe)(before, sentences)
    return _sheet(sentences, rows)


def _sheet(titles: Sequence[str], rows: dict[str, Sequence[Image.Image]]) -> Image.Image:
    titles = [_wrapped(title) for title in titles]
    head = _LINE * max(title.count("\n") + 1 for title in titles)
    pitch = SIDE + _MARGIN
    sheet = Image.new("RGB", (_LABEL + len(titles) * pitch, head + _MARGIN + len(rows) * pitch), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.multiline_text((_LABEL + column * pitch, _MARGIN // 2), title, fill="black", font_size=_FONT)
    for row, (name, pictures) in enumerate(rows.items()):
        top = head + _MARGIN + row * pitch
        pen.text((_MARGIN, top + SIDE // 2), name, fill="black", font_size=_FONT)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (_LABEL + column * pitch, top))
    return sheet


def _wrapped(title: str) -> str:
    """Broken into lines no wider than a picture."""
    pen, lines = ImageDraw.Draw(Image.new("L", (1, 1))), [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font_size=_FONT) > SIDE:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw edits.png, turns.png and lora.png.")
    parser.add_argument("checkpoint", nargs="?", default=TINY_KONTEXT)
    parser.add_argument("--out", type=Path, default=Path("demo/pictures"), help="folder (default: %(default)s)")
    parser.add_argument("--device", default="emulated", help="of tt_flux_kontext (default: %(default)s)")
    arguments = parser.parse_args()
    theirs = editor(load(arguments.checkpoint))
    with open_device(arguments.device) as device:
        pipe = FluxKontextPipeline.from_pretrained(arguments.checkpoint, device=device)
        pipe.set_progress_bar_config(disable=True)
        ours = editor(pipe)
        for name, sheet in (("edits", edits_sheet), ("turns", turns_sheet)):
            save(sheet(ours, theirs), arguments.out / f"{name}.png")
        save(lora_sheet(pipe), arguments.out / "lora.png")


if __name__ == "__main__":
    main()
