"""What the step cache saves and what it costs, beside plain fewer steps; and the ratios of a checkpoint.

python -m reference.step_cache --count 500                        # the demo's weights, on the emulated device
python -m reference.step_cache CHECKPOINT --calibrate PICTURE --prompt "make it red" --device silicon
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from diffusers import MagCacheConfig
from PIL import Image

from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.step_cache import full_steps

from .evaluate import editor, evaluate
from .pipeline import TINY_KONTEXT
from .scenes import Edit, held_out_edits

STEPS = 20
THRESHOLDS = (0.06, 0.12, 0.24)


def rows(pipe: FluxKontextPipeline, edits: Sequence[Edit]) -> Iterator[str]:
    """For each threshold, and for as many plain steps: passes of the blocks, PSNR to all steps, edits right."""
    pipe.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    all_steps, right = _run(pipe, edits, STEPS)
    yield f"{'':<20}{'passes':>8}{'PSNR':>10}{'right':>7}"
    yield f"{f'{STEPS} steps':<20}{STEPS:>8}{'':>10}{right:>7}"
    ratios = pipe.mag_ratios
    for threshold in THRESHOLDS:
        config = MagCacheConfig(mag_ratios=ratios, threshold=threshold, num_inference_steps=STEPS)
        passes = sum(full_steps(config))
        for name, steps, cache in ((f"cache, {threshold}", STEPS, config), (f"{passes} steps", passes, None)):
            pipe.enable_cache(cache) if cache else pipe.disable_cache()
            pictures, right = _run(pipe, edits, steps)
            yield f"{name:<20}{passes:>8}{_psnr(pictures, all_steps):>7.1f} dB{right:>7}"


def _run(pipe: FluxKontextPipeline, edits: Sequence[Edit], steps: int) -> tuple[list[Image.Image], int]:
    """The pictures, and how many edits are right."""
    pictures, edit_pictures = [], editor(pipe, steps)

    def keeping(before, sentences):
        results = edit_pictures(before, sentences)
        pictures.extend(results)
        return results

    outcomes = evaluate(keeping, edits)
    return pictures, sum(outcome.success for outcome in outcomes)


def _psnr(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Mean over all pictures, in dB; of equal ones, that of an error of half a level."""
    errors = [
        np.square(np.asarray(one, dtype=np.float64) - np.asarray(other)).mean() for one, other in zip(pictures, others)
    ]
    return float(np.mean(-10 * np.log10(np.maximum(errors, 0.25) / 255**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=TINY_KONTEXT)
    parser.add_argument("--device", default="emulated", help="of tt_flux_kontext")
    parser.add_argument("--precision", help="of tt_flux_kontext")
    parser.add_argument("--count", type=int, default=500, help="of the demo's edits")
    parser.add_argument("--calibrate", metavar="PICTURE", help="print the ratios of an edit of this picture instead")
    parser.add_argument("--prompt", help="of that edit")
    parser.add_argument("--steps", type=int, default=28, help="of that edit")
    arguments = parser.parse_args()
    if bool(arguments.calibrate) != bool(arguments.prompt):
        parser.error("--calibrate and --prompt go together")
    with open_device(arguments.device) as device:
        pipe = FluxKontextPipeline.from_pretrained(arguments.checkpoint, device=device, precision=arguments.precision)
        if not arguments.calibrate:
            pipe.set_progress_bar_config(disable=True)
            for row in rows(pipe, held_out_edits(arguments.count)):
                print(row, flush=True)
            return
        pipe.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=arguments.steps))
        pipe(Image.open(arguments.calibrate), arguments.prompt, num_inference_steps=arguments.steps)
        print([round(ratio, 5) for ratio in pipe.mag_ratios])


if __name__ == "__main__":
    main()
