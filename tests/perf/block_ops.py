"""The child process of test_perf: counts the device operations of one double and one single block at full size.

It also says which system TT-NN takes the mock for, as the tests on a card ask it.
"""

import json
import warnings
from collections.abc import Callable

import torch

from tests.perf.measured import system_name
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.modulation import Modulation
from tt_flux_kontext.models.transformer import Positions, Transformer, TransformerConfig
from tt_flux_kontext.models.weights import Weights
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.planner.operations import operations
from tt_flux_kontext.precision import PRECISIONS
from tt_flux_kontext.resolution import image_ids

TEXT, EDGE, STEPS = 512, 64, 28  # text tokens; image tokens along an edge; denoising steps


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch, about meta tensors
    with answer() as request, open_device("silicon") as device:
        counts = {"system": system_name()} | count(device, request["precision"])
        print(json.dumps(counts), flush=True)


def count(device, precision: str) -> dict[str, int]:
    config = TransformerConfig(num_layers=1, num_single_layers=1, guidance_embeds=True)
    parallel = Parallel(Mesh(device))
    weights = Weights(ShapeCheckpoint().tensors("transformer"), PRECISIONS[precision].of("transformer"), parallel)
    transformer = Transformer(config, weights)
    pooled = _empty(device, 1, config.pooled_projection_dim)
    table = Modulation(config, weights)([1 - i / STEPS for i in range(STEPS)], 2.5, pooled)
    ids = torch.cat([image_ids(EDGE, EDGE, index=index) for index in (0, 1)])
    positions = Positions.of(ids, TEXT, config, parallel)
    image, context, joint = (_empty(device, rows, config.inner_dim) for rows in (len(ids), TEXT, len(ids) + TEXT))
    (double,), (single,), step = transformer.double_blocks, transformer.single_blocks, table.step()
    return {
        "double block": _ops(lambda: double(image, context, positions, step.double[0])),
        "single block": _ops(lambda: single(joint, positions, step.single[0])),
        # Of the image and the context stream of the double block, of the single block, and of the output norm.
        "modulation": _ops(table.step),
    }


def _ops(call: Callable) -> int:
    ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
    call()
    return len(operations(ttnn.graph.end_graph_capture()))


def _empty(device, rows: int, width: int) -> "ttnn.Tensor":
    """bfloat16 [1, 1, rows, width]."""
    return ttnn.empty([1, 1, rows, width], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=device)


if __name__ == "__main__":
    main()
