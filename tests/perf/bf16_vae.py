"""The child process of test_perf that times the VAE as the public figures have it: with norms in bfloat16, by HiFi2."""

import json
import warnings

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.models import vae
from tt_flux_kontext.planner.kontext_dev import full_size_editor
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.planner.operations import operations
from tt_flux_kontext.planner.roofline import CHIPS, time

EDGE = 1024  # of the picture, in pixels


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch, about meta tensors
    vae.to_float32 = vae.to_bfloat16 = lambda x: x
    vae.add = lambda a, b: a._replace(values=ttnn.add(a.values, b.values))
    with answer() as request, open_device("silicon") as device:
        models = full_size_editor(device, "bfp8").models
        latents = torch.zeros((EDGE // 16) ** 2, 64)
        calls = {
            "vae encoder": lambda: models["vae encoder"](torch.zeros(3, EDGE, EDGE)),
            "vae decoder": lambda: models["vae decoder"](latents, EDGE, EDGE),
        }
        print(json.dumps({name: _modelled(call, request["system"]) for name, call in calls.items()}), flush=True)


def _modelled(call, system: str) -> float:
    ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
    call()
    return time(operations(ttnn.graph.end_graph_capture()), CHIPS[system]).seconds


if __name__ == "__main__":
    main()
