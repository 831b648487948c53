"""Edits a picture by an instruction:

pytest demo --prompt "make the circle red" --image in.png --out edited.png [--weights FOLDER_OR_HUB_ID]
"""

import time
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import FluxKontextInpaintPipeline
from PIL import Image

from demo.results import before_after
from reference.accuracy import pcc
from reference.gallery import save
from reference.pipeline import TINY_KONTEXT, load, quiet
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.masks import fit, read_masks
from tt_flux_kontext.metadata import with_parameters
from tt_flux_kontext.residency import DoesNotFit
from tt_flux_kontext.resolution import output_size

TINY_AREA = 128 * 128  # pixels
MULTIPLE = 16
LIMIT = 0.03
"""RMSE from diffusers as a fraction of the range, at most. PCC says the same of a picture of some contrast; in a nearly
flat one it compares the noise."""


def test_edit(mesh_device, options, report, capfd):
    tiny = options.weights is None
    weights = options.weights or TINY_KONTEXT
    image, references = options.image, list(options.references)
    arguments = {"prompt": options.prompt, "num_inference_steps": options.steps, "guidance_scale": options.guidance}
    if options.size:
        height, width = options.size
        arguments |= {"height": height, "width": width, "max_area": height * width}
    if tiny:  # its own small sizes, in which diffusers gets the picture too
        height, width = output_size(*(options.size or image.size[::-1]), arguments.get("max_area", TINY_AREA), MULTIPLE)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        arguments |= {"height": height, "width": width, "max_area": height * width}
        arguments |= {"_auto_resize": False, "max_sequence_length": 64}
        references = [_at_tiny_size(reference) for reference in references]
    arguments["image"] = image
    if options.mask:
        arguments["mask_image"] = options.mask

    edited, timings = {}, Counter()
    try:
        pipe = FluxKontextPipeline.from_pretrained(weights, device=mesh_device, split=options.split)
        with capfd.disabled():  # the bar is to be seen
            for seed in options.seeds:
                print()
                start = time.perf_counter()
                generator = torch.Generator().manual_seed(seed)
                picture = pipe(generator=generator, reference_images=references, **arguments).images[0]
                seconds = time.perf_counter() - start
                edited[seed] = picture
                timings.update(pipe.timings)
                out = options.out_of(seed)
                parameters = options.parameters(seed, picture.size, pipe.precision.name)
                save(picture, out, **with_parameters(out.suffix, parameters))
                how = f"{picture.width} x {picture.height}, {options.steps} steps, seed {seed}, {seconds:.2f} s"
                report.append(f"{'edited picture:':<20} {out} ({how})")
    except (CheckpointError, DoesNotFit, ValueError) as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None

    sheet = options.out.with_name(f"{options.out.stem}_before_after.png")
    save(before_after(image, list(edited.values()), options.prompt), sheet)
    report.append(f"{'before and after:':<20} {sheet}")
    rows, columns = mesh_device.shape
    where = f"on the {options.device} device ({mesh_device.arch().name}, {rows} x {columns})"
    report.append(f"{'made by:':<20} {options.model} in {pipe.precision.name}, {where}")
    report += [f"{name:<20}{seconds:>8.2f} s" for name, seconds in timings.items()]
    report.append(f"{'total':<20}{sum(timings.values()):>8.2f} s")
    if tiny and references:
        report.append("No comparison with diffusers, which has one reference.")
    elif tiny:  # small enough for torch in float32 beside it
        with quiet():
            theirs = load(weights)
            if options.mask:
                theirs = FluxKontextInpaintPipeline(**theirs.components)
                theirs.set_progress_bar_config(disable=True)
            for seed, picture in edited.items():
                expected = theirs(generator=torch.Generator().manual_seed(seed), **arguments).images[0]
                if options.mask:  # outside it diffusers gives back what the VAE makes of the picture
                    painted = fit(read_masks(options.mask), (height, width))[0, 0]
                    expected = Image.composite(expected, image, Image.fromarray(painted.numpy()))
                _compare(picture, expected, report)
    if tiny:
        report.append("These weights know coloured shapes alone. FLUX.1 Kontext's own: --weights FOLDER_OR_HUB_ID")


def _at_tiny_size(picture: Image.Image) -> Image.Image:
    height, width = output_size(*picture.size[::-1], TINY_AREA, MULTIPLE)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _compare(edited: Image.Image, expected: Image.Image, report: list[str]) -> None:
    ours, theirs = (torch.from_numpy(np.asarray(picture, dtype=np.float32)) / 255 for picture in (edited, expected))
    error = float((ours - theirs).square().mean().sqrt())
    report.append(f"{'RMSE from diffusers':<20}{100 * error:>8.2f} % of the range, at most {100 * LIMIT:.0f} %")
    if theirs.std() > LIMIT:
        report.append(f"{'PCC with diffusers':<20}{pcc(ours, theirs):>8.4f}")
    assert error <= LIMIT
