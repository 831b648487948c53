"""Runs edits with the full-size models on the mock device, and writes what each phase took, a line of JSON each.

Started by `plan.py` in a process of its own, with the environment of `mock_device.py`.
"""

import json
import warnings
from types import SimpleNamespace

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import dram_bytes, open_device
from tt_flux_kontext.edit import Edit, Editor, Phase
from tt_flux_kontext.inputs import Text
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.planner.operations import operations, peaks
from tt_flux_kontext.planner.roofline import seconds
from tt_flux_kontext.precision import PRECISIONS
from tt_flux_kontext.residency import DoesNotFit, Models

CLIP_TOKENS = 77


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch, about meta tensors
    with answer() as request, open_device("silicon") as device:
        for edit in request["edits"]:
            _plan(request["system"], device, **edit)


def _plan(system: str, device, precision: str | None, text_tokens: int, **edit) -> None:
    checkpoint = ShapeCheckpoint()
    models = Models(checkpoint, device, PRECISIONS[precision or next(iter(PRECISIONS))])
    editor = Editor(models, _tokenizer(CLIP_TOKENS), _tokenizer(text_tokens))
    job = _edit(models, text_tokens=text_tokens, **edit)
    if precision is None:
        precision = models.fitting_precision(editor.size(job)) or models.precision.name
        models = editor.models = Models(checkpoint, device, PRECISIONS[precision])
    size = editor.size(job)
    _write(precision=precision, best=models.fitting_precision(size), workspaces=models.workspaces(size))
    phases = editor.run(job)
    while True:
        free, total = dram_bytes(device)
        ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
        try:
            event = next(phases)
        except DoesNotFit as error:
            _write(refused=str(error))
            return
        finally:
            capture = ttnn.graph.end_graph_capture()
        if not isinstance(event, Phase):
            return
        done, peak = operations(capture), peaks(capture)
        _write(
            name=event.name,
            weights=models.bytes_on_device,
            peak=total - free + peak.dram,
            free=free - peak.dram,
            l1=peak.l1,
            ops=len(done),
            flop=sum(operation.flop for operation in done),
            traffic=sum(operation.dram_bytes for operation in done),
            seconds=seconds(done, system),
        )


def _write(**line) -> None:
    print(json.dumps(line), flush=True)


def _edit(models: Models, size: tuple, reference: tuple | None, images: int, text_tokens: int) -> Edit:
    height, width = size
    tokens = (height // 16) * (width // 16)
    return Edit(
        text=Text(clip=[""], t5=[""]),
        negative=None,
        image=torch.zeros(1, 3, *reference) if reference else None,
        latents=torch.zeros(images, tokens, models.transformer_config.in_channels),
        size=(height, width),
        sigmas=[1.0, 0.5, 0.0],  # the second step meets what the first one left
        guidance=2.5,
        true_cfg_scale=1.0,
        images_per_prompt=images,
        max_sequence_length=text_tokens,
        callback=None,
        callback_tensors=(),
    )


def _tokenizer(length: int):
    """As many tokens as there can be, of no meaning."""

    def tokenize(prompts: list[str], **_) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.zeros(len(prompts), length, dtype=torch.int64))

    tokenize.model_max_length = length
    return tokenize


if __name__ == "__main__":
    main()
