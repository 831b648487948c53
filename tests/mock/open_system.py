"""The child process of test_systems: opens the mock of a system, tries it, and then fails if that is asked for."""

import json

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.planner.mock_device import answer


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
    """What TT-NN says of the mesh, and the shapes of what it makes there."""
    grid = mesh.compute_with_storage_grid_size()
    product = ttnn.linear(empty(mesh, 2048, 512), empty(mesh, 512, 2048))  # enough for all cores of a chip
    topology = ttnn.Topology.Ring if ring else ttnn.Topology.Linear
    axes = [axis for axis in (0, 1) if mesh.shape[axis] > 1]
    gathered = [ttnn.all_gather(product, 1, cluster_axis=axis, topology=topology) for axis in axes]
    return {
        "mesh shape": list(mesh.shape),
        "chips": ttnn.get_num_devices(),
        "arch": mesh.arch().name.lower(),
        "grid": [grid.x, grid.y],
        "dram": dram_bytes(mesh)[1],
        "linear": list(product.shape),
        "gathered": [list(tensor.shape) for tensor in gathered],
    }


def empty(mesh, *shape: int):
    return ttnn.empty(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh)


if __name__ == "__main__":
    main()
