"""Did the edit work? The rule, and the rates of any pipeline on edits that training never saw.

python -m reference.evaluate                                        # diffusers in float32
python -m reference.evaluate --device emulated --precision bfp8     # ours
python -m reference.evaluate --new heart --lora demo/lora/heart.safetensors
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tt_flux_kontext import FluxKontextPipeline, open_device

from .lora import merge_lora
from .pipeline import TINY_KONTEXT, load
from .scenes import SIDE, Edit, Scene, changed_region, draw, held_out_edits
from .wording import COLOURS, EDIT_KINDS, HEART

MAX_CHANGED_ERROR = 0.1
"""Limit of the mean absolute error in the changed region, as a fraction of the range."""
MIN_KEPT_PSNR = 28.0
"""Least PSNR of all other pixels, in dB."""

TEXT_LENGTH = 56
"""`max_sequence_length` that holds any sentence of `wording`."""

EditPictures = Callable[[Sequence[Image.Image | None], Sequence[str]], Sequence[Image.Image]]
"""Pictures, or None for each where text alone says what to paint, and sentences; gives pictures, all SIDE x SIDE."""


@dataclass(frozen=True)
class Outcome:
    """How near a picture came to the right one.

    Attributes:
        changed_error: mean absolute error where the edit should change something, 0 ... 1.
        kept_psnr: PSNR of the rest in dB; infinite where the rest is equal or empty.
    """

    changed_error: float
    kept_psnr: float

    @property
    def success(self) -> bool:
        return self.changed_error < MAX_CHANGED_ERROR and self.kept_psnr >= MIN_KEPT_PSNR


def judge(before: Image.Image, target: Image.Image, result: Image.Image) -> Outcome:
    """Compares an edit's result with its target; all three RGB pictures have one size.

    Raises:
        ValueError: the sizes differ.
    """
    if not before.size == target.size == result.size:
        raise ValueError(f"pictures of one size are needed, not {before.size}, {target.size} and {result.size}")
    error = (np.asarray(result, dtype=np.float64) - np.asarray(target, dtype=np.float64)) / 255
    changed = changed_region(before, target)
    kept = np.square(error[~changed]).mean() if (~changed).any() else 0.0
    kept_psnr = float(-10 * np.log10(kept)) if kept else float("inf")
    return Outcome(float(np.abs(error[changed]).mean()) if changed.any() else 0.0, kept_psnr)


def has_colours(scene: Scene, picture: Image.Image) -> bool:
    """Whether a picture has the colours of a scene and no others, wherever its shapes stand.

    By the nearest of COLOURS of each pixel: most are of the ground's, 1 % or more of each shape's, and 5 % at most of
    all others together.
    """
    pixels = np.asarray(picture, dtype=np.float64)[:, :, None]
    nearest = np.square(pixels - list(COLOURS.values())).sum(-1).argmin(-1)
    shares = {name: (nearest == i).mean() for i, name in enumerate(COLOURS)}
    ground, shapes = shares[scene.ground], [shares[shape.colour] for shape in scene.shapes]
    return bool(ground > 0.5 and min(shapes) >= 0.01 and ground + sum(shapes) >= 0.95)


def evaluate(edit_pictures: EditPictures, edits: Sequence[Edit], batch: int = 16) -> list[Outcome]:
    """Lets a pipeline do the edits, some at a time, and judges each."""
    outcomes = []
    for start in tqdm(range(0, len(edits), batch), "edits"):
        part = edits[start : start + batch]
        before = [draw(edit.before) for edit in part]
        results = edit_pictures(before, [edit.instruction for edit in part])
        outcomes += [judge(b, draw(edit.after), result) for b, edit, result in zip(before, part, results, strict=True)]
    return outcomes


def successes(edits: Sequence[Edit], outcomes: Sequence[Outcome]) -> dict[str, list[bool]]:
    """Whether each edit worked, by kind and of all."""
    pairs = list(zip(edits, outcomes, strict=True))
    by_kind = {kind: [outcome.success for edit, outcome in pairs if edit.kind == kind] for kind in EDIT_KINDS}
    return by_kind | {"all": [outcome.success for outcome in outcomes]}


def report(edits: Sequence[Edit], outcomes: Sequence[Outcome]) -> str:
    """Success rates by kind of edit and overall, then the edits that failed."""
    lines = [
        f"{kind:12}{np.mean(good):7.1%}  {sum(good)} of {len(good)}"
        for kind, good in successes(edits, outcomes).items()
        if good
    ]
    for edit, outcome in zip(edits, outcomes):
        if not outcome.success:
            figures = f"error {outcome.changed_error:.3f}, rest {outcome.kept_psnr:.1f} dB"
            lines.append(f"failed: {edit.instruction!r} ({figures})")
    return "\n".join(lines)


def editor(pipe, steps: int = 20, guidance: float = 2.5, seed: int = 0) -> EditPictures:
    """A pipeline, ours or diffusers', as a callable for `evaluate`; the same noise for the same place in a batch."""

    def edit_pictures(pictures: Sequence[Image.Image | None], sentences: Sequence[str]) -> Sequence[Image.Image]:
        references = None
        if pictures[0] is not None:
            references = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
            references = references.permute(0, 3, 1, 2).float() / 255
        return pipe(
            image=references,
            prompt=list(sentences),
            height=SIDE,
            width=SIDE,
            max_area=SIDE * SIDE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=TEXT_LENGTH,
            generator=torch.Generator().manual_seed(seed),
            _auto_resize=False,
        ).images

    return edit_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description="Success rates of a checkpoint.")
    parser.add_argument("checkpoint", nargs="?", default=TINY_KONTEXT)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", help="of tt_flux_kontext, such as emulated; without it diffusers runs in float32")
    parser.add_argument("--precision", help="of tt_flux_kontext")
    parser.add_argument("--lora", type=Path, help="file that reference.train_lora wrote")
    parser.add_argument("--new", default="", choices=(HEART,), help="edits that name this shape, which is a LoRA's")
    arguments = parser.parse_args()
    edits = held_out_edits(arguments.count, new=arguments.new)
    with open_pipeline(arguments.checkpoint, arguments.device, arguments.precision, arguments.lora) as pipe:
        print(report(edits, evaluate(editor(pipe, arguments.steps), edits)))


@contextmanager
def open_pipeline(checkpoint: str | Path, device_name: str | None, precision: str | None, lora: Path | None = None):
    """Ours on a device, without progress bars; without a device diffusers' in float32, the LoRA merged by hand."""
    if device_name is None:
        pipe = load(checkpoint)
        if lora:
            merge_lora(pipe.transformer, lora)
        yield pipe
        return
    with open_device(device_name) as device:
        pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision=precision)
        pipe.set_progress_bar_config(disable=True)
        if lora:
            pipe.load_lora_weights(lora)
        yield pipe


if __name__ == "__main__":
    main()
