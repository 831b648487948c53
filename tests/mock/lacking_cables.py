"""The child process of test_cables: opens a system, and tells its shape, the rings in it, and what was said."""

import json

import torch
from loguru import logger

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.models.weights import upload
from tt_flux_kontext.planner.mock_device import answer


def main() -> None:
    shape, rings, messages = [], [], []
    logger.add(lambda message: messages.append(message.record["message"]), level="WARNING")
    with answer():
        try:
            with open_device("silicon") as mesh:
                shape = list(mesh.shape)
                tile = upload(torch.zeros(1, 1, 32, 32), mesh, ttnn.bfloat16)
                axes = [axis for axis in (0, 1) if shape[axis] > 1]
                rings = [ttnn.get_usable_topology(tile, cluster_axis=axis) == ttnn.Topology.Ring for axis in axes]
        except RuntimeError as error:
            messages.append(str(error))
        print(json.dumps({"shape": shape, "rings": rings, "messages": messages}), flush=True)


if __name__ == "__main__":
    main()
