"""The child process of test_traces: some denoising steps of full-size edits, and what of a trace they would change."""

import gc
import json
import warnings

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.planner.kontext_dev import full_size_edit, full_size_editor
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.planner.operations import operations


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch, about meta tensors
    gc.disable()
    with answer() as request, open_device("silicon") as device:
        editor = full_size_editor(device, "bfp8_mixed", request["split"])
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


def recorded(capture: list[dict]) -> dict:
    """Names of operations with the form of their tensors, and addresses of buffers as they come and go."""
    buffers = [node for node in capture if node["node_type"] in ("buffer_allocate", "buffer_deallocate")]
    return {
        "operations": [repr(operation) for operation in operations(capture)],
        "addresses": [(node["node_type"], node["params"]["address"], node["params"]["type"]) for node in buffers],
    }


if __name__ == "__main__":
    main()
