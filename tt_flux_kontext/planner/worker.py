"""Runs one edit with the full-size models on the mock device, and writes what each phase took, a line of JSON each.

Started by `plan.py` in a process of its own, with the environment of `mock_device.py`.
"""

import json
from types import SimpleNamespace

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import dram_bytes, open_device
from tt_flux_kontext.edit import Edit, Editor, Phase
from tt_flux_kontext.inputs import Text
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.precision import PRECISIONS
from tt_flux_kontext.residency import Models

CLIP_TOKENS = 77


def main() -> None:
    with answer() as request, open_device("silicon") as device:
        models = Models(ShapeCheckpoint(), device, PRECISIONS[request["precision"]])
        editor = Editor(models, _tokenizer(CLIP_TOKENS), _tokenizer(request["text_tokens"]))
        phases = editor.run(_edit(models, request))
        while True:
            free, total = dram_bytes(device)
            ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
            event = next(phases)
            peak, ops = _replay(ttnn.graph.end_graph_capture())
            if not isinstance(event, Phase):
                return
            line = {"name": event.name, "peak": total - free + peak, "free": free - peak, "ops": ops}
            print(json.dumps(line), flush=True)


def _edit(models: Models, request: dict) -> Edit:
    height, width = request["size"]
    image = torch.zeros(1, 3, *request["reference"]) if request["reference"] else None
    tokens = (height // 16) * (width // 16)
    return Edit(
        text=Text(clip=[""], t5=[""]),
        negative=None,
        image=image,
        latents=torch.zeros(request["images"], tokens, models.transformer_config.in_channels),
        size=(height, width),
        sigmas=[1.0, 0.5, 0.0],  # the second step meets what the first one left
        guidance=2.5,
        true_cfg_scale=1.0,
        images_per_prompt=request["images"],
        max_sequence_length=request["text_tokens"],
        callback=None,
        callback_tensors=(),
    )


def _tokenizer(length: int):
    """As many tokens as there can be, of no meaning."""

    def tokenize(prompts: list[str], **_) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.zeros(len(prompts), length, dtype=torch.int64))

    tokenize.model_max_length = length
    return tokenize


def _replay(nodes: list[dict]) -> tuple[int, int]:
    """The most DRAM in use above that at the start, in bytes, and the number of device operations, of a capture."""
    used = peak = ops = 0
    for node in nodes:
        parameters = node.get("params") or {}
        if node["node_type"] == "function_start" and "DeviceOperation" in parameters.get("name", ""):
            ops += 1
        if parameters.get("type") == "DRAM" and node["node_type"] in ("buffer_allocate", "buffer_deallocate"):
            used += int(parameters["size"]) * (1 if node["node_type"] == "buffer_allocate" else -1)
            peak = max(peak, used)
    return peak, ops


if __name__ == "__main__":
    main()
