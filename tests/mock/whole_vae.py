"""The child process of test_vae: encodes and decodes with the full-size VAE, its maps split over all chips."""

import json
import warnings

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import dram_bytes, open_device
from tt_flux_kontext.planner.kontext_dev import full_size_editor
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.planner.operations import operations, peaks
from tt_flux_kontext.residency import EditSize


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch, about meta tensors
    with answer() as request, open_device("silicon", tuple(request["mesh"])) as device:
        models = full_size_editor(device, "bf16").models
        for height, width in request["sizes"]:
            tokens = height // 16 * (width // 16)
            room = models.workspaces(EditSize(text_tokens=512, image_tokens=tokens, pixels=height * width))
            inputs = {
                "vae encoder": (torch.zeros(3, height, width),),
                "vae decoder": (torch.zeros(tokens, 64), height, width),
            }
            for name, arguments in inputs.items():
                model = models[name]
                free, total = dram_bytes(device)
                ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
                model(*arguments)
                capture = ttnn.graph.end_graph_capture()
                line = {
                    "phase": f"{name}, {height} x {width}",
                    "ops": len(operations(capture)),
                    "used": total - free + peaks(capture).dram,
                    "reserved": models.bytes_on_device + room[name],
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
