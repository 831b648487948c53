"""Many turns: edits of edits in latents, beside the round trip through pictures, and that round trip alone.

python -m reference.turns                                           # diffusers in float32
python -m reference.turns --device emulated --count 4               # ours
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tt_flux_kontext import FluxKontextPipeline

from .evaluate import TEXT_LENGTH, Outcome, judge, open_pipeline
from .pipeline import TINY_KONTEXT
from .scenes import SIDE, Edit, draw, turns
from .training.vae import decode, encode

SHOWN = (1, 2, 4, 8, 12)
"""Turns in the table."""


@dataclass(frozen=True)
class Engine:
    """A pipeline on [B] pictures of SIDE x SIDE, or their latents in the form that it takes.

    Attributes:
        edit: latents, sentences and a seed; gives latents.
        encode: 8-bit pictures; gives latents.
        decode: latents; gives 8-bit pictures.
    """

    edit: Callable[[torch.Tensor, Sequence[str], int], torch.Tensor]
    encode: Callable[[Sequence[Image.Image]], torch.Tensor]
    decode: Callable[[torch.Tensor], Sequence[Image.Image]]


Way = Callable[[Engine, Sequence[Image.Image], Sequence[Sequence[str]]], Iterator[Sequence[Image.Image]]]
"""From [B] pictures and the sentences [turns][B] to the pictures after each turn."""


def in_latents(engine: Engine, pictures: Sequence[Image.Image], sentences: Sequence[Sequence[str]]):
    """Each turn goes on from the latents of the one before."""
    latents = engine.encode(pictures)
    for number, asked in enumerate(sentences, 1):
        latents = engine.edit(latents, asked, number)
        yield engine.decode(latents)


def through_pictures(engine: Engine, pictures: Sequence[Image.Image], sentences: Sequence[Sequence[str]]):
    """Each turn goes on from the picture of the one before."""
    for number, asked in enumerate(sentences, 1):
        pictures = engine.decode(engine.edit(engine.encode(pictures), asked, number))
        yield pictures


def without_edit(engine: Engine, pictures: Sequence[Image.Image], sentences: Sequence[Sequence[str]]):
    """Into latents and back, whatever is asked for."""
    for _ in sentences:
        pictures = engine.decode(engine.encode(pictures))
        yield pictures


def engine_of(pipe, steps: int = 8) -> Engine:
    """Of a pipeline, ours or diffusers'."""
    sizes = {"height": SIDE, "width": SIDE, "max_area": SIDE * SIDE, "_auto_resize": False}

    def edit(latents, sentences, seed):
        generator = torch.Generator().manual_seed(seed)
        arguments = sizes | {"num_inference_steps": steps, "guidance_scale": 2.5, "max_sequence_length": TEXT_LENGTH}
        return pipe(latents, list(sentences), generator=generator, output_type="latent", **arguments).images

    if isinstance(pipe, FluxKontextPipeline):
        return Engine(edit, lambda pictures: pipe.encode(pictures, **sizes), lambda z: pipe.decode(z, SIDE, SIDE))
    return Engine(
        lambda *arguments: pipe._unpack_latents(edit(*arguments), SIDE, SIDE, pipe.vae_scale_factor),
        lambda pictures: encode(pipe.vae, pipe.image_processor.preprocess(list(pictures))),
        lambda latents: pipe.image_processor.postprocess(decode(pipe.vae, latents)),
    )


def make_chains(scenes: int, count: int) -> list[list[Edit]]:
    """For each scene `count` edits in a row."""
    return [turns(Random(f"turns {index}"), count) for index in range(scenes)]


def outcomes(engine: Engine, way: Way, chains: Sequence[Sequence[Edit]]) -> list[list[Outcome]]:
    """Judges each turn of each chain, [turns][chains]; `without_edit` by how well the first scene is kept."""
    start, by_turn = [draw(chain[0].before) for chain in chains], list(zip(*chains))
    results = way(engine, start, [[edit.instruction for edit in turn] for turn in by_turn])
    judged = []
    for turn, pictures in zip(by_turn, tqdm(results, way.__name__, len(by_turn))):
        if way is without_edit:
            expected = zip(start, start)
        else:
            expected = ((draw(edit.before), draw(edit.after)) for edit in turn)
        judged.append([judge(*pair, picture) for pair, picture in zip(expected, pictures, strict=True)])
    return judged


def rows(engine: Engine, chains: Sequence[Sequence[Edit]]) -> Iterator[str]:
    """For each way, at some of the turns: right edits in it and so far, scenes without a wrong one, what is kept.

    What is kept is the median PSNR of what the turn should leave alone, against the scene that it should be.
    """
    yield f"{'':<18}{'turn':>5}{'right':>7}{'so far':>8}{'unspoilt':>10}{'kept':>10}"
    for way in (in_latents, through_pictures, without_edit):
        judged = outcomes(engine, way, chains)
        right = np.array([[outcome.success for outcome in turn] for turn in judged])
        unspoilt = np.logical_and.accumulate(right)
        kept = np.median([[outcome.kept_psnr for outcome in turn] for turn in judged], axis=1)
        for turn in SHOWN:
            counts = f"{right[turn - 1].sum():>7}{right[:turn].sum():>8}{unspoilt[turn - 1].sum():>10}"
            yield f"{way.__name__.replace('_', ' '):<18}{turn:>5}{counts}{kept[turn - 1]:>7.1f} dB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=TINY_KONTEXT)
    parser.add_argument("--count", type=int, default=48, help="of scenes (default: %(default)s)")
    parser.add_argument("--device", help="of tt_flux_kontext, such as emulated; without it diffusers runs in float32")
    parser.add_argument("--precision", help="of tt_flux_kontext")
    arguments = parser.parse_args()
    with open_pipeline(arguments.checkpoint, arguments.device, arguments.precision) as pipe:
        for row in rows(engine_of(pipe), make_chains(arguments.count, max(SHOWN))):
            print(row, flush=True)


if __name__ == "__main__":
    main()
