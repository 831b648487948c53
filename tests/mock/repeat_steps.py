"""The child process of test_traces: what runs again in full-size edits, and what of a trace that would change."""

import gc
import json
import warnings

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.planner.kontext_dev import full_size_edit, full_size_editor
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.planner.operations import operations
from tt_flux_kontext.residency import Models

EDGE = 256  # of the VAE's pictures


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch, about meta tensors
    gc.disable()
    with answer() as request, open_device("silicon") as device:
        editor = full_size_editor(device, "bfp8_mixed", request["split"])
        if "times" in request:
            repeat_models(editor.models, request["times"])
            return
        mesh = editor.models.parallel["transformer"].mesh
        size = (256, 256)
        phases = editor.run(
            [full_size_edit(size, [size], images=1, text_tokens=256, steps=request["steps"], masked=True)]
        )
        while next(phases).name != "transformer weights":
            pass
        for _ in range(request["steps"]):
            turns = mesh.turns
            ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
            next(phases)
            capture = ttnn.graph.end_graph_capture()
            step = {"turns": sorted(map(str, turns)), "programs": device.num_program_cache_entries()}
            print(json.dumps(step | recorded(capture)), flush=True)
            gc.collect()


def repeat_models(models: Models, times: int) -> None:
    """Each with the same input, in the same place; what it made is gone before it runs again."""
    arguments = {
        "t5": (torch.zeros(512, dtype=torch.int64),),
        "vae encoder": (torch.zeros(3, EDGE, EDGE),),
        "vae decoder": (torch.zeros((EDGE // 16) ** 2, 64), EDGE, EDGE),
    }
    for name, inputs in arguments.items():
        model = models[name]
        x, form = model.host_input(*inputs)
        place = ttnn.to_device(x, models.device)
        for _ in range(times):
            ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
            model.on_device(place, form)
            capture = ttnn.graph.end_graph_capture()
            line = {"model": name, "programs": models.device.num_program_cache_entries()}
            print(json.dumps(line | recorded(capture)), flush=True)
            gc.collect()


def recorded(capture: list[dict]) -> dict:
    """Names of operations with the form of their tensors, and addresses of buffers as they come and go."""
    buffers = [node for node in capture if node["node_type"] in ("buffer_allocate", "buffer_deallocate")]
    return {
        "operations": [repr(operation) for operation in operations(capture)],
        "addresses": [(node["node_type"], node["params"]["address"], node["params"]["type"]) for node in buffers],
    }


if __name__ == "__main__":
    main()
