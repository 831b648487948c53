"""Wrong calls of TT-NN on two chips side by side, through the door; see `refusals`."""

import torch

from tests.refusals import BF8, F32, RM, U32, New, host, program
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


def semaphore(n: New):
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))})
    return ttnn.create_global_semaphore(n.device, cores, 0)


def semaphores(n: New) -> dict:
    return {name: [semaphore(n)] for name in ("neighbor_semaphore", "barrier_semaphore")}


def halo(n: New, *shape, dim=1, rows=1, axis=1, layout=RM, mode="zeros", **other):
    right = {"dim": [dim], "padding_left": [rows], "padding_right": [rows], "cluster_axis": [axis]}
    x = n(*(shape or (1, 8, 8, 32)), layout=layout)
    return ttnn.experimental.neighbor_pad_async(x, padding_mode=mode, **right | semaphores(n) | other)


def halo_twice(n: New):
    same = semaphores(n)
    return halo(n, **same), halo(n, **same)


def around(n: New, *, axis=1, joint=0, shares=False, senders=(0, 7), shape=(1, 2, 64, 32), dtype="bfloat16", **other):
    """Ring attention of two heads of 32 and 64 rows a chip, and of as many joint ones as `joint` says."""
    batch, heads, rows, size = shape
    chips = n.device.shape[axis] if axis < 2 else 1
    right = dict(zip(("input_tensor_q", "input_tensor_k", "input_tensor_v"), (n(*shape, dtype=dtype) for _ in "qkv")))
    right |= buffers(n, batch, heads, rows * chips, size, dtype=dtype)
    if joint:
        right |= {f"joint_tensor_{x}": n(batch, heads, joint, size, dtype=dtype) for x in "qkv"}
    if shares:
        right |= buffers(n, batch, heads, joint * chips, size, dtype=dtype, kind="joint_")
        right["logical_l"] = joint * chips
    config = ttnn.init_device_compute_kernel_config(
        n.device.arch(), math_fidelity=ttnn.MathFidelity.HiFi4, fp32_dest_acc_en=True
    )
    right |= {
        "joint_strategy": "rear",
        "logical_n": rows * chips,
        "program_config": program(y=7),
        "compute_kernel_config": config,
        "dim": 2,
        "multi_device_global_semaphore": [semaphore(n), semaphore(n)],
        "num_links": 1,
        "cluster_axis": axis,
        "mesh_device": n.device,
        "topology": ttnn.Topology.Linear,
        "ccl_core_grid_offset": ttnn.CoreCoord(*senders),
    }
    return ttnn.transformer.ring_joint_scaled_dot_product_attention(**right | other)


def buffers(n: New, *shape, dtype="bfloat16", kind="") -> dict:
    return {f"persistent_output_buffer_{kind}{x}": n(*shape, dtype=dtype) for x in "kv"}


def around_with_one_buffer(n: New):
    buffer = n(1, 2, 128, 32)
    return around(n, persistent_output_buffer_k=buffer, persistent_output_buffer_v=buffer)


def around_twice(n: New, **same):
    return around(n, **same), around(n, **same)


def product(n: New, *, axis=1, grid=(8, 7), blocks=(2, 2), links=1, senders=8, chunks=1, **other):
    """A matrix product of 64 rows that gathers features, 64 of a chip."""
    chips = n.device.shape[axis]
    (rows, inner), (m, k) = blocks, (64, 64)
    right = {
        "input_tensor": n(1, 1, m, k),
        "weight_tensor": n(k * chips, 96),
        "bias_tensor": n(1, 96),
        "persistent_output_buffer": n(1, 1, m, k * chips),
        "config": ttnn.MinimalMatmulConfig(
            M_block_size=rows,
            K_block_size=inner,
            N_block_size=2,
            subblock_h=2,
            subblock_w=2,
            compute_with_storage_grid_size=ttnn.CoreCoord(*grid),
        ),
        "multi_device_global_semaphore": [semaphore(n), semaphore(n)],
        "topology": ttnn.Topology.Linear,
        "num_links": links,
        "num_workers_per_link": senders,
        "cluster_axis": axis,
        "chunks": chunks,
    }
    return ttnn.experimental.all_gather_minimal_matmul_async(**right | other)


def product_twice(n: New, **same):
    return product(n, **same), product(n, **same)


def norm(n: New, *shape, axis=1, links=1, **other):
    """A layer norm over features, 64 of a chip."""
    x = n(*(shape or (1, 1, 64, 64)))
    create = ttnn.experimental.dit_fused_distributed_layernorm_create_stats_buffer
    right = {
        "weight": n(1, 1, 1, 64),
        "bias": n(1, 1, 1, 64),
        "persistent_output_buffer": create(x, axis, n.device, num_links=links),
        "num_preferred_links": links,
        "topology": ttnn.Topology.Linear,
        "multi_device_global_semaphore": [semaphore(n), semaphore(n)],
    }
    right |= other
    semaphores = right.pop("multi_device_global_semaphore")
    return ttnn.experimental.dit_fused_distributed_layernorm(x, axis, n.device, semaphores, **right)


def norm_twice(n: New, **same):
    return norm(n, **same), norm(n, **same)


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
    # ring attention
    "ring attention along one chip": (lambda n: around(n, axis=0), "more than one chip"),
    "ring attention along no axis": (lambda n: around(n, axis=2), "must be 0 or 1"),
    "ring attention in fp32": (
        lambda n: around(n, input_tensor_q=n(1, 2, 64, 32, dtype=F32)), "input_tensor_q must be .*got FLOAT32"),
    "ring attention in row-major": (
        lambda n: around(n, input_tensor_q=n(1, 2, 64, 32, layout=RM)), "must be in Layout.TILE"),
    "ring attention to keys of another dtype": (
        lambda n: around(n, input_tensor_k=n(1, 2, 64, 32, dtype=BF8)), "must have q's dtype"),
    "ring attention of partly filled heads": (lambda n: around(n, shape=(1, 2, 64, 48)), "head dim"),
    "ring attention of rows that fill no tile": (lambda n: around(n, shape=(1, 2, 40, 32)), "must fill tiles"),
    "ring attention of fewer queries": (
        lambda n: around(n, input_tensor_q=n(1, 2, 32, 32)), "queries, keys and values must be"),
    "ring attention to one head": (
        lambda n: around(n, input_tensor_k=n(1, 1, 64, 32), persistent_output_buffer_k=n(1, 1, 128, 32)),
        "queries, keys and values must be"),
    "short ring buffers": (lambda n: around(n, **buffers(n, 1, 2, 96, 32)), "persistent buffers must be"),
    "long ring buffers": (lambda n: around(n, **buffers(n, 1, 2, 160, 32)), "persistent buffers must be"),
    "ring buffers of another dtype": (lambda n: around(n, **buffers(n, 1, 2, 128, 32, dtype=BF8)), "q's dtype"),
    "one ring buffer for keys and values": (around_with_one_buffer, "tensor of its own"),
    "ring buffers twice": (lambda n: around_twice(n, **buffers(n, 1, 2, 128, 32)), "twice in a row"),
    "ring semaphores twice": (
        lambda n: around_twice(n, multi_device_global_semaphore=[semaphore(n), semaphore(n)]), "twice in a row"),
    "one ring semaphore": (
        lambda n: around(n, multi_device_global_semaphore=[semaphore(n)]), "two different semaphores"),
    "one ring semaphore for both ways": (
        lambda n: around(n, multi_device_global_semaphore=[semaphore(n)] * 2), "two different semaphores"),
    "ring attention to no keys": (lambda n: around(n, logical_n=0), "logical_n must end"),
    "ring attention to more keys than there are": (lambda n: around(n, logical_n=129), "logical_n must end"),
    "ring attention of a chip of padding": (lambda n: around(n, logical_n=64), "logical_n must end"),
    "ring attention along heads": (lambda n: around(n, dim=1), "only rows"),
    "ring attention, strategy": (lambda n: around(n, joint_strategy="front"), "'rear'"),
    "ring attention, chunk size": (lambda n: around(n, program_config=program(q=48, y=7)), "multiples of 32"),
    "ring attention where others send": (lambda n: around(n, program_config=program()), "overlaps the senders"),
    "ring attention with senders off the grid": (lambda n: around(n, senders=(7, 7)), "not in a row"),
    "ring attention over no links": (lambda n: around(n, num_links=0), "num_links"),
    "ring attention around no ring": (lambda n: around(n, topology=ttnn.Topology.Ring), "no ring"),
    "joint queries without keys": (lambda n: around(n, joint=32, joint_tensor_k=None), "all together"),
    "joint keys of another length": (
        lambda n: around(n, joint=32, joint_tensor_k=n(1, 2, 64, 32)), "queries, keys and values must be"),
    "joint tensors of fewer heads": (
        lambda n: around(n, joint=32, **{f"joint_tensor_{x}": n(1, 1, 32, 32) for x in "qkv"}),
        "queries, keys and values must be"),
    "joint tensors of another length than told": (lambda n: around(n, joint=32, logical_l=31), "logical_l must be"),
    "joint shares that fill no tile": (lambda n: around(n, joint=40, shares=True), "must fill tiles"),
    "joint shares with padding": (lambda n: around(n, joint=32, shares=True, logical_l=60), "logical_l must be"),
    "joint shares without a buffer": (lambda n: around(n, joint=32, logical_l=64), "need buffers"),
    # products that gather
    "gathered product along one chip": (lambda n: product(n, axis=0), "more than one chip"),
    "gathered product in row-major": (lambda n: product(n, input_tensor=n(1, 1, 64, 64, layout=RM)), "Layout.TILE"),
    "gathered product of fewer features": (lambda n: product(n, input_tensor=n(1, 1, 64, 32)), "inner dimensions"),
    "gathered product with a long bias": (lambda n: product(n, bias_tensor=n(1, 128)), "the bias must be"),
    "gathered product in parts of tiles": (lambda n: product(n, chunks=5), "chunks of whole tiles"),
    "gathered product without a config": (lambda n: product(n, config=None), "a config is needed"),
    "gathered product where links are served": (lambda n: product(n, grid=(8, 8)), "leave the last row"),
    "gathered product, block of nothing": (lambda n: product(n, blocks=(2, 0)), "K_block_size"),
    "gathered product, block of several chips": (lambda n: product(n, blocks=(2, 4)), "K_block_size"),
    "gathered product, block of half subblocks": (lambda n: product(n, blocks=(3, 2)), "whole subblocks"),
    "gathered product over no links": (lambda n: product(n, links=0), "num_links"),
    "gathered product, senders of two links": (lambda n: product(n, senders=4), "num_links"),
    "gathered product, one semaphore for both ways": (
        lambda n: product(n, multi_device_global_semaphore=[semaphore(n)] * 2), "two different semaphores"),
    "gathered product around two chips": (lambda n: product(n, topology=ttnn.Topology.Ring), "is no ring"),
    "gathered product into no buffer": (
        lambda n: product(n, persistent_output_buffer=None), "persistent_output_buffer is needed"),
    "gathered product into a short buffer": (
        lambda n: product(n, persistent_output_buffer=n(1, 1, 64, 64)), "persistent_output_buffer must be"),
    "gathered product into a buffer of another dtype": (
        lambda n: product(n, persistent_output_buffer=n(1, 1, 64, 128, dtype=F32)), "persistent_output_buffer must be"),
    "gathered product into the same buffer": (
        lambda n: product_twice(n, persistent_output_buffer=n(1, 1, 64, 128)), "twice in a row"),
    "gathered product with the same semaphores": (
        lambda n: product_twice(n, multi_device_global_semaphore=[semaphore(n), semaphore(n)]), "twice in a row"),
    # norms over several chips
    "shared norm by block floats": (lambda n: norm(n, weight=n(1, 64, dtype=BF8)), "weight must be"),
    "shared norm of two samples": (lambda n: norm(n, 2, 1, 64, 64), "must be"),
    "shared norm of partial tiles": (
        lambda n: norm(n, 1, 1, 64, 48, weight=n(1, 48), bias=n(1, 48)), "whole tiles along W"),
    "shared norm by another weight": (lambda n: norm(n, weight=n(1, 96)), "weight must be one row"),
    "shared norm with a bias alone": (lambda n: norm(n, weight=None), "requires a weight"),
    "shared norm with a row-major bias": (lambda n: norm(n, bias=n(1, 64, layout=RM)), "bias must be in"),
    "shared norm without a buffer": (lambda n: norm(n, persistent_output_buffer=None), "is required"),
    "shared norm into tiles": (
        lambda n: norm(n, persistent_output_buffer=n(1, 1, 4, 1088, dtype=F32)), "persistent_output_buffer must be"),
    "shared norm of more rows than its buffer": (
        lambda n: norm(n, persistent_output_buffer=n(1, 1, 2, 1088, dtype=F32, layout=RM)),
        "persistent_output_buffer must be"),
    "shared norm without semaphores": (lambda n: norm(n, multi_device_global_semaphore=[]), "must not be empty"),
    "shared norm around two chips": (lambda n: norm(n, topology=ttnn.Topology.Ring), "is no ring"),
    "shared norm with the same semaphores": (
        lambda n: norm_twice(n, multi_device_global_semaphore=[semaphore(n)]), "twice in a row"),
}  # fmt: skip

# Calls that no signature takes.
SIGNATURES = {
    "all_gather: the axis by position": lambda n: ttnn.all_gather(n(32, 32), 1, 1),
    "all_reduce: the axis by position": lambda n: ttnn.all_reduce(n(32, 64), 1),
    "ring attention, causal by position": lambda n: ttnn.transformer.ring_joint_scaled_dot_product_attention(
        *[n(1, 2, 64, 32)] * 6, True
    ),
}

# What real TT-NN takes on its mock device.
SILENT = {
    "gather of partial tiles of block floats": "works there, and is not emulated",
    "scatter of half tiles": "works there, and is not emulated",
    "scatter of row-major": "works there, and is not emulated",
    "sum of integers": "adds them as floats",
    "sum over a ring of two": "makes a line of it",
    "halo with the same semaphores": "may hang, or be wrong",
    "ring attention along one chip": "works there, and is not emulated",
    "ring attention to one head": "works there, and is not emulated",
    "long ring buffers": "work there, and are not emulated",
    "one ring buffer for keys and values": "keys and values overwrite each other",
    "ring buffers twice": "a chip may overwrite what its neighbour still reads",
    "ring semaphores twice": "may hang, or be wrong",
    "one ring semaphore": "reads memory that is not the list's",
    "one ring semaphore for both ways": "may hang, or be wrong",
    "ring attention of a chip of padding": "its results begin with what was in memory",
    "ring attention around no ring": "makes a line of it",
    "joint tensors of fewer heads": "reads beyond them",
    "joint shares without a buffer": "takes memory that a neighbour may write to before it is free",
    "gathered product, one semaphore for both ways": "may hang, or be wrong",
    "gathered product around two chips": "hangs: the first chip has nobody before it, the second nobody behind it",
    "gathered product into no buffer": "takes memory that a neighbour may write to before it is free",
    "gathered product into a short buffer": "writes beyond it",
    "gathered product into a buffer of another dtype": "takes bytes for others",
    "gathered product into the same buffer": "a chip may overwrite what its neighbour still reads",
    "gathered product with the same semaphores": "may hang, or be wrong",
    "shared norm around two chips": "hangs, as gathered products do",
    "shared norm with the same semaphores": "may hang, or be wrong",
}
