"""The child process of test_systems: opens the mock of a system, tries it, and then fails if that is asked for."""

import json
import re

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.planner.operations import operations


def main() -> None:
    with answer() as request:
        mesh = open_all(request["mesh_shape"], request["ring"])
        print(json.dumps(facts(mesh, request["ring"])), flush=True)
        match request["end"]:
            case "Python error":
                raise ZeroDivisionError("not in a call of TT-NN")
            case "TT_FATAL":
                ttnn.matmul(empty(mesh, 32, 64), empty(mesh, 32, 64))
            case "crash":
                tensor = empty(mesh, 32, 32)
                ttnn.deallocate(tensor)
                ttnn.gelu(tensor)  # TT-NN doesn't check
        ttnn.close_mesh_device(mesh)


def open_all(mesh_shape: list[int], ring: bool):
    if mesh_shape != [1, 1]:  # what collectives go over; it can't be had later
        ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D_RING if ring else ttnn.FabricConfig.FABRIC_1D)
    return ttnn.open_mesh_device(ttnn.MeshShape(*mesh_shape))


def facts(mesh, ring: bool) -> dict:
    """What TT-NN says of the mesh, and what it makes there."""
    grid = mesh.compute_with_storage_grid_size()
    product = ttnn.linear(empty(mesh, 2048, 512), empty(mesh, 512, 2048))  # enough for all cores of a chip
    topology = ttnn.Topology.Ring if ring else ttnn.Topology.Linear
    return {
        "mesh shape": list(mesh.shape),
        "chips": ttnn.get_num_devices(),
        "arch": mesh.arch().name.lower(),
        "grid": [grid.x, grid.y],
        "dram": dram_bytes(mesh)[1],
        "linear": list(product.shape),
        "axes": [collectives(product, axis, topology) for axis in (0, 1) if mesh.shape[axis] > 1],
    }


def collectives(x, axis: int, topology) -> dict:
    """What a gather and a reduction along an axis are, and the cables that TT-NN finds there by itself."""
    ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
    gathered = ttnn.all_gather(x, 1, cluster_axis=axis, topology=topology)
    reduced = ttnn.all_reduce(x, cluster_axis=axis, topology=topology)
    capture = ttnn.graph.end_graph_capture()
    parameters = next(text for node in capture for text in node["arguments"] if text.startswith("AllGatherParams"))
    topologies, _, _, links = re.findall(r"array\((.*?), (.*?)\)", parameters)
    return {
        "gathered": list(gathered.shape),
        "reduced": list(reduced.shape),
        "exchanged": [[each.name, each.chips, each.link_bytes] for each in operations(capture)],
        "links": int(links[axis]),
        "topology": topologies[axis],
    }


def empty(mesh, *shape: int):
    return ttnn.empty(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh)


if __name__ == "__main__":
    main()
