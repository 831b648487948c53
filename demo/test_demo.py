"""Edits a picture by an instruction:

pytest demo --prompt "make the circle red" --image in.png --out edited.png [--weights FOLDER_OR_HUB_ID]
"""

import inspect
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxKontextInpaintPipeline
from PIL import Image

from demo.results import before_after
from reference.accuracy import pcc
from reference.pipeline import load, quiet
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.cli.loading import call_arguments, load_pipeline
from tt_flux_kontext.cli.usage import in_options
from tt_flux_kontext.masks import fit, read_masks
from tt_flux_kontext.metadata import save, save_result
from tt_flux_kontext.residency import DoesNotFit

LIMIT = 0.03
"""RMSE from diffusers as a fraction of the range, at most. PCC says the same of a picture of some contrast; in a nearly
flat one it compares the noise."""


def test_edit(mesh_device, options, report, capfd):
    parameters, edited, timings = options.parameters, {}, Counter()
    pictures = options.image, options.mask, options.references
    try:
        pipe = load_pipeline(parameters, mesh_device)
        with capfd.disabled():  # the bar is to be seen
            for seed in options.seeds:
                print()
                start = time.perf_counter()
                made_with = replace(parameters, seed=seed, precision=pipe.precision.name)
                edited[seed] = picture = pipe(**call_arguments(made_with, *pictures)).images[0]
                seconds = time.perf_counter() - start
                timings.update(pipe.timings)
                out = options.out_of(seed)
                save_result(picture, out, made_with)
                how = f"{picture.width} x {picture.height}, {parameters.steps} steps, seed {seed}, {seconds:.2f} s"
                report.append(f"{'edited picture:':<20} {out} ({how})")
    except (CheckpointError, DoesNotFit, ValueError) as error:
        raise pytest.fail.Exception(in_options(str(error)), pytrace=False) from None

    sheet = options.out.with_name(f"{options.out.stem}_before_after.png")
    save(before_after(options.image, list(edited.values()), parameters.prompt), sheet)
    report.append(f"{'before and after:':<20} {sheet}")
    rows, columns = mesh_device.shape
    where = f"on the {parameters.device} device ({mesh_device.arch().name}, {rows} x {columns})"
    report.append(f"{'made by:':<20} {parameters.weights} in {pipe.precision.name}, {where}")
    report += [f"{name:<20}{seconds:>8.2f} s" for name, seconds in timings.items()]
    report.append(f"{'total':<20}{sum(timings.values()):>8.2f} s")
    if options.tiny and options.references:
        report.append("No comparison with diffusers, which has one reference.")
    elif options.tiny and parameters.loras:
        report.append("No comparison with diffusers, which takes adapters with the package peft only.")
    elif options.tiny:  # small enough for torch in float32 beside it
        for seed, expected in _by_diffusers(options).items():
            _compare(edited[seed], expected, report)
    if options.tiny:
        report.append("These weights know coloured shapes alone. FLUX.1 Kontext's own: --weights FOLDER_OR_HUB_ID")


def _by_diffusers(options) -> dict[int, Image.Image]:
    """The same edits in float32, by seed."""
    parameters = options.parameters
    with quiet():
        pipe = load(parameters.weights)
        if options.mask:
            pipe = FluxKontextInpaintPipeline(**pipe.components)
            pipe.set_progress_bar_config(disable=True)
        expected = {}
        for seed in options.seeds:
            arguments = call_arguments(replace(parameters, seed=seed), options.image, options.mask)
            taken = inspect.signature(pipe.__call__).parameters
            arguments = {name: value for name, value in arguments.items() if name in taken}
            expected[seed] = pipe(**arguments).images[0]
            if options.mask:  # outside it diffusers gives back what the VAE makes of the picture
                painted = fit(read_masks(options.mask), (parameters.height, parameters.width))[0, 0]
                painted = Image.fromarray(painted.numpy())
                expected[seed] = Image.composite(expected[seed], arguments["image"], painted)
    return expected


def _compare(edited: Image.Image, expected: Image.Image, report: list[str]) -> None:
    ours, theirs = (torch.from_numpy(np.asarray(picture, dtype=np.float32)) / 255 for picture in (edited, expected))
    error = float((ours - theirs).square().mean().sqrt())
    report.append(f"{'RMSE from diffusers':<20}{100 * error:>8.2f} % of the range, at most {100 * LIMIT:.0f} %")
    if theirs.std() > LIMIT:
        report.append(f"{'PCC with diffusers':<20}{pcc(ours, theirs):>8.4f}")
    assert error <= LIMIT
