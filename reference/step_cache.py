"""What step caches save and what they cost, beside plain fewer steps; and the ratios of a checkpoint.

python -m reference.step_cache --count 500                        # the demo's weights, by diffusers in float32
python -m reference.step_cache CHECKPOINT --calibrate PICTURE --prompt "make it red" --device silicon
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import diffusers
import numpy as np
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from PIL import Image

from tt_flux_kontext import FluxKontextPipeline, open_device

from .evaluate import editor, evaluate
from .pipeline import TINY_KONTEXT, load, quiet
from .scenes import Edit, held_out_edits

STEPS = 20
MAG_CACHE, FIRST_BLOCK_CACHE = (0.06, 0.24), (0.06, 0.1, 0.2)
"""Thresholds, for about 14 and 9, and 12, 8 and 4 passes through the blocks."""
CALIBRATED_BY = 4  # edits


class Run(NamedTuple):
    """Of some edits: pictures, how many are right, and passes through the blocks in each."""

    pictures: list[Image.Image]
    right: int
    passes: float


def rows(edits: Sequence[Edit], ratios: Sequence[float]) -> Iterator[str]:
    """For each cache, and for as many plain steps: passes through the blocks, PSNR to all steps, edits right.

    `ratios`: of MagCache.
    """
    pipe = load(TINY_KONTEXT)
    _name_contexts(pipe.transformer)
    full = _run(pipe, edits, STEPS)
    yield f"{'':<28}{'passes':>8}{'PSNR':>10}{'right':>7}"
    yield f"{f'{STEPS} steps':<28}{full.passes:>8.1f}{'':>10}{full.right:>7}"
    mag = {"mag_ratios": ratios, "num_inference_steps": STEPS}
    caches = {f"MagCache, {each}": MagCacheConfig(threshold=each, **mag) for each in MAG_CACHE}
    caches |= {f"first-block cache, {each}": FirstBlockCacheConfig(each) for each in FIRST_BLOCK_CACHE}
    for name, config in caches.items():
        pipe.transformer.enable_cache(config)
        cached = _run(pipe, edits, STEPS)
        pipe.transformer.disable_cache()
        fewer = round(cached.passes)
        for row, run in ((name, cached), (f"{fewer} steps", _run(pipe, edits, fewer))):
            psnr = _psnr(run.pictures, full.pictures)
            yield f"{row:<28}{run.passes:>8.1f}{psnr:>7.1f} dB{run.right:>7}"


def _name_contexts(transformer: "diffusers.FluxTransformer2DModel") -> None:
    """As its first-block cache wants it, and diffusers' pipeline of Kontext does not do."""
    forward = transformer.forward

    def in_context(*args, **kwargs):
        with transformer.cache_context("cond"):
            return forward(*args, **kwargs)

    transformer.forward = in_context


def _run(pipe: "diffusers.FluxKontextPipeline", edits: Sequence[Edit], steps: int) -> Run:
    """One by one, since a cache decides for all that run together."""
    pictures, passes, edit_pictures = [], [], editor(pipe, steps)

    def keeping(before, sentences):
        results = edit_pictures(before, sentences)
        pictures.extend(results)
        return results

    a_later_block = pipe.transformer.single_transformer_blocks[0].attn
    counting = a_later_block.register_forward_hook(lambda *_: passes.append(1))
    with quiet():
        outcomes = evaluate(keeping, edits, batch=1)
    counting.remove()
    return Run(pictures, sum(outcome.success for outcome in outcomes), len(passes) / len(edits))


def _psnr(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Mean over all pictures, in dB; of equal ones, that of an error of half a level."""
    errors = [
        np.square(np.asarray(one, dtype=np.float64) - np.asarray(other)).mean() for one, other in zip(pictures, others)
    ]
    return float(np.mean(-10 * np.log10(np.maximum(errors, 0.25) / 255**2)))


def _ratios(edits: Sequence[Edit]) -> list[float]:
    """Of these edits together, by ours."""
    with open_device("emulated") as device:
        pipe = FluxKontextPipeline.from_pretrained(TINY_KONTEXT, device=device)
        pipe.set_progress_bar_config(disable=True)
        pipe.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
        evaluate(editor(pipe, STEPS), edits)
        return pipe.mag_ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=TINY_KONTEXT, help="to calibrate")
    parser.add_argument("--count", type=int, default=500, help="of the demo's edits")
    parser.add_argument("--calibrate", metavar="PICTURE", help="print the ratios of an edit of this picture instead")
    parser.add_argument("--prompt", help="of that edit")
    parser.add_argument("--steps", type=int, default=28, help="of that edit")
    parser.add_argument("--device", default="emulated", help="of tt_flux_kontext, for that edit")
    parser.add_argument("--precision", help="of tt_flux_kontext, for that edit")
    arguments = parser.parse_args()
    if bool(arguments.calibrate) != bool(arguments.prompt):
        parser.error("--calibrate and --prompt go together")
    if not arguments.calibrate:
        edits = held_out_edits(arguments.count)
        for row in rows(edits, _ratios(edits[:CALIBRATED_BY])):
            print(row, flush=True)
        return
    with open_device(arguments.device) as device:
        pipe = FluxKontextPipeline.from_pretrained(arguments.checkpoint, device=device, precision=arguments.precision)
        pipe.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=arguments.steps))
        pipe(Image.open(arguments.calibrate), arguments.prompt, num_inference_steps=arguments.steps)
        print([round(ratio, 5) for ratio in pipe.mag_ratios])


if __name__ == "__main__":
    main()
