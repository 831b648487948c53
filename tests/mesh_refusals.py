"""Wrong calls of TT-NN on two chips side by side, through the door; see `refusals`."""

import torch

from tests.refusals import BF8, F32, RM, U32, New, host
from tt_flux_kontext.backend import ttnn


def split(n: New, values, *dims, device=True):
    """Parts of `values` along `dims`, one for each axis of the mesh; None is whole."""
    placements = [ttnn.PlacementReplicate() if dim is None else ttnn.PlacementShard(dim) for dim in dims]
    mapper = ttnn.create_mesh_mapper(n.device, ttnn.MeshMapperConfig(placements))
    kind = {"dtype": ttnn.bfloat16, "layout": ttnn.TILE_LAYOUT, "device": n.device if device else None}
    return ttnn.from_torch(values, mesh_mapper=mapper, **kind)


def joined(n: New, tensor, *dims):
    composer = ttnn.create_mesh_composer(n.device, ttnn.MeshComposerConfig(list(dims)))
    return ttnn.to_torch(tensor, mesh_composer=composer)


def copied(tensor, to):
    ttnn.copy_host_to_device_tensor(tensor, to)


def gather(n: New, *shape, dim=1, axis=1, dtype="bfloat16"):
    return ttnn.all_gather(n(*shape, dtype=dtype), dim, cluster_axis=axis)


def scatter(n: New, *shape, dim=1, axis=1, **kind):
    return ttnn.reduce_scatter(n(*shape, **kind), dim, cluster_axis=axis)


def reduce(n: New, *shape, axis=1, **kind):
    return ttnn.all_reduce(n(*shape, **kind), cluster_axis=axis)


def semaphores(n: New) -> dict:
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))})
    names = ("neighbor_semaphore", "barrier_semaphore")
    return {name: [ttnn.create_global_semaphore(n.device, cores, 0)] for name in names}


def halo(n: New, *shape, dim=1, rows=1, axis=1, layout=RM, mode="zeros", **other):
    right = {"dim": [dim], "padding_left": [rows], "padding_right": [rows], "cluster_axis": [axis]}
    x = n(*(shape or (1, 8, 8, 32)), layout=layout)
    return ttnn.experimental.neighbor_pad_async(x, padding_mode=mode, **right | semaphores(n) | other)


def halo_twice(n: New):
    same = semaphores(n)
    return halo(n, **same), halo(n, **same)


# case: (call of `New`, words of the emulator)
CASES = {
    # splitting and joining
    "another fabric of an open mesh": (lambda n: ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D), "still open"),
    "a submesh that does not divide": (lambda n: n.device.create_submeshes(ttnn.MeshShape(1, 3)), "not divisible"),
    "uneven shards": (lambda n: split(n, torch.zeros(64, 101), None, 1), "no 2 equal shards"),
    "shards of an absent dimension": (lambda n: split(n, torch.zeros(64, 64), None, 2), "invalid dimension"),
    "shards of one dimension along two axes": (lambda n: split(n, torch.zeros(64, 64), 1, -1), "must be unique"),
    "one placement": (lambda n: split(n, torch.zeros(64, 64), 1), "1 entries for the 2 axes"),
    "joining without a composer": (lambda n: ttnn.to_torch(n(32, 32)), "supply a mesh composer"),
    "joining host shards without a composer": (
        lambda n: ttnn.to_torch(split(n, torch.zeros(64, 64), None, 1, device=False)), "supply a mesh composer"),
    "joining along one dimension twice": (lambda n: joined(n, n(32, 32), 0, 0), "must be unique"),
    "joining along an absent dimension": (lambda n: joined(n, n(32, 32), 0, 2), "invalid dimension"),
    "joining a single shard": (lambda n: joined(n, host(32, 32), 0, 1), "composer is for 2 shards"),
    "copying another shape": (lambda n: copied(host(32, 64), to=n(32, 32)), "has shape"),
    "copying another dtype": (lambda n: copied(host(32, 32), to=n(32, 32, dtype=F32)), "has dtype"),
    "copying another layout": (lambda n: copied(host(32, 32), to=n(32, 32, layout=RM)), "has layout"),
    "copying from the device": (lambda n: copied(n(32, 32), to=n(32, 32)), "not on the host"),
    # gathers and sums
    "gather along one chip": (lambda n: gather(n, 32, 32, axis=0), "more than one chip"),
    "gather along no axis": (lambda n: gather(n, 32, 32, axis=2), "must be 0 or 1"),
    "gather of an absent dimension": (lambda n: gather(n, 32, 32, dim=2), "invalid dimension"),
    "gather of partial tiles of block floats": (lambda n: gather(n, 32, 48, dtype=BF8), "not emulated"),
    "scatter along one chip": (lambda n: scatter(n, 32, 32, axis=0), "more than one chip"),
    "scatter of an odd width": (lambda n: scatter(n, 32, 65), "parts of whole tiles"),
    "scatter of half tiles": (lambda n: scatter(n, 32, 32), "parts of whole tiles"),
    "scatter of rank 1": (lambda n: scatter(n, 64, dim=0), "at least two"),
    "scatter of row-major": (lambda n: scatter(n, 32, 64, layout=RM), "only tiles"),
    "sum along one chip": (lambda n: reduce(n, 32, 64, axis=0), "more than one chip"),
    "sum of integers": (lambda n: reduce(n, 32, 64, dtype=U32), "got UINT32"),
    "sum over a ring of two": (
        lambda n: ttnn.all_reduce(n(32, 64), cluster_axis=1, topology=ttnn.Topology.Ring), "needs FABRIC_1D_RING"),
    "partition of an odd height": (lambda n: ttnn.mesh_partition(n(45, 64), 0, 1), "parts of whole tiles"),
    "partition of a tile": (lambda n: ttnn.mesh_partition(n(32, 32), 1, 1), "parts of whole tiles"),
    "partition of an absent dimension": (lambda n: ttnn.mesh_partition(n(64, 64), 2, 1), "invalid dimension"),
    "partition along no axis": (lambda n: ttnn.mesh_partition(n(64, 64), 1, 2), "must be 0 or 1"),
    # halos
    "halo along one chip": (lambda n: halo(n, axis=0), "more than one chip"),
    "halo of columns": (lambda n: halo(n, dim=3), "non-last"),
    "halo of a dimension from the end": (lambda n: halo(n, dim=-3), "non-last"),
    "halo of more than there is": (lambda n: halo(n, rows=9), "exceeds dimension 1"),
    "halo of tiles": (lambda n: halo(n, 1, 32, 32, 32, layout="TILE_LAYOUT"), "must be in Layout.ROW_MAJOR"),
    "halo that mirrors": (lambda n: halo(n, mode="mirror"), "padding mode"),
    "halo over more links than work": (lambda n: halo(n, num_links=[2]), "not enough work"),
    "halo without a semaphore": (lambda n: halo(n, neighbor_semaphore=[]), "one dimension at a time"),
    "halo with the same semaphores": (halo_twice, "twice in a row"),
}  # fmt: skip

# Calls that no signature takes.
SIGNATURES = {
    "all_gather: the axis by position": lambda n: ttnn.all_gather(n(32, 32), 1, 1),
    "all_reduce: the axis by position": lambda n: ttnn.all_reduce(n(32, 64), 1),
}

# What real TT-NN takes on its mock device.
SILENT = {
    "gather of partial tiles of block floats": "works there, and is not emulated",
    "scatter of half tiles": "works there, and is not emulated",
    "scatter of row-major": "works there, and is not emulated",
    "sum of integers": "adds them as floats",
    "sum over a ring of two": "makes a line of it",
    "halo with the same semaphores": "may hang, or be wrong",
}
