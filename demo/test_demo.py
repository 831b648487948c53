"""Edits a picture by an instruction:

pytest demo --prompt "make the circle red" --image in.png --out edited.png [--weights FOLDER_OR_HUB_ID]
"""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from reference.accuracy import pcc
from reference.gallery import save
from reference.pipeline import TINY_KONTEXT, load, quiet
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.residency import DoesNotFit
from tt_flux_kontext.resolution import output_size, reference_size

TINY_AREA = 128 * 128  # pixels
MULTIPLE = 16


def test_edit(mesh_device, options, report, capfd):
    tiny = options.weights is None
    weights = options.weights or TINY_KONTEXT
    image = options.image
    arguments = {"prompt": options.prompt, "num_inference_steps": options.steps, "guidance_scale": options.guidance}
    if tiny:
        height, width = output_size(image.height, image.width, TINY_AREA, MULTIPLE)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        arguments |= {"_auto_resize": False, "max_sequence_length": 64}
    else:
        height, width = reference_size(image.height, image.width, MULTIPLE)
    height, width = options.size or (height, width)
    arguments |= {"image": image, "height": height, "width": width, "max_area": height * width}

    try:
        pipe = FluxKontextPipeline.from_pretrained(weights, device=mesh_device)
        with capfd.disabled():  # the bar is to be seen
            print()
            edited = pipe(generator=torch.Generator().manual_seed(options.seed), **arguments).images[0]
    except (CheckpointError, DoesNotFit) as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None

    save(edited, options.out)
    sheet = options.out.with_name(f"{options.out.stem}_before_after.png")
    save(_before_after(image, edited, options.prompt), sheet)
    report += [f"{name:<20}{seconds:>8.2f} s" for name, seconds in pipe.timings.items()]
    report.append(f"{'total':<20}{sum(pipe.timings.values()):>8.2f} s")
    if tiny:  # small enough for torch in float32 beside it
        with quiet():
            expected = load(weights)(generator=torch.Generator().manual_seed(options.seed), **arguments).images[0]
        pixels = [torch.from_numpy(np.asarray(picture, dtype=np.float32)) for picture in (edited, expected)]
        report.append(f"{'PCC with diffusers':<20}{pcc(*pixels):>8.4f}")
        assert pcc(*pixels) > 0.99
    report += [f"edited picture:      {options.out}", f"before and after:    {sheet}"]
    if tiny:
        report.append("These weights know coloured shapes alone. FLUX.1 Kontext's own: --weights FOLDER_OR_HUB_ID")


def _before_after(before: Image.Image, after: Image.Image, prompt: str) -> Image.Image:
    """Both pictures side by side at a height that can be seen, the prompt under them."""
    height, margin, line = max(256, after.height), 16, 32
    pictures = [p.resize((p.width * height // p.height, height), Image.Resampling.LANCZOS) for p in (before, after)]
    width = sum(picture.width for picture in pictures) + 3 * margin
    sheet = Image.new("RGB", (width, height + 2 * margin + line), "white")
    sheet.paste(pictures[0], (margin, margin))
    sheet.paste(pictures[1], (2 * margin + pictures[0].width, margin))
    ImageDraw.Draw(sheet).text((margin, height + margin + line // 4), prompt, fill="black", font_size=18)
    return sheet
