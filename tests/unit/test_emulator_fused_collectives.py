"""Products that gather and norms of split rows on chips of the emulated device, against torch."""

import math

import pytest
import torch
import torch.nn.functional as F

import tt_flux_kontext.emulator as ttnn

LINE, RING = ttnn.FabricConfig.FABRIC_1D, ttnn.FabricConfig.FABRIC_1D_RING
CORES = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))})
SHARD, WHOLE = ttnn.PlacementShard, ttnn.PlacementReplicate()
AXES = [  # system, mesh, axis, fabric
    ("n300", (1, 2), 1, LINE),
    ("t3k", (2, 4), 0, LINE),
    ("t3k", (2, 4), 1, LINE),
    ("t3k", (1, 8), 1, RING),
    ("galaxy", (8, 4), 1, RING),
]
CONFIG = ttnn.WormholeComputeKernelConfig(math_fidelity=ttnn.MathFidelity.HiFi4, fp32_dest_acc_en=True)


@pytest.fixture
def opened():
    """Opens a mesh of all chips of a system."""
    devices = []

    def open_mesh(system, shape, fabric):
        ttnn.configure(system)
        ttnn.set_fabric_config(fabric)
        devices.append(ttnn.open_mesh_device(ttnn.MeshShape(shape)))
        return devices[-1]

    yield open_mesh
    for device in devices:
        ttnn.close_mesh_device(device)
    ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)
    ttnn.configure()


def split(values, mesh, axis, dtype=ttnn.bfloat16):
    """Features over the chips of an axis, and rows over those of the other if there are several."""
    placements = [SHARD(-2), SHARD(-2)] if values.shape[-2] > 1 else [WHOLE, WHOLE]
    placements[axis] = SHARD(-1)
    mapper = ttnn.create_mesh_mapper(mesh, ttnn.MeshMapperConfig(placements))
    return ttnn.from_torch(values, dtype, layout=ttnn.TILE_LAYOUT, device=mesh, mesh_mapper=mapper)


def joined(tensor, mesh, axis):
    dims = [-2, -2]
    dims[axis] = -1
    composer = ttnn.create_mesh_composer(mesh, ttnn.MeshComposerConfig(dims))
    return ttnn.to_torch(tensor, torch.float32, mesh_composer=composer)


def semaphores(mesh):
    return [ttnn.create_global_semaphore(mesh, CORES, 0) for _ in range(2)]


def along(mesh, axis):
    is_ring = mesh.fabric is RING and mesh.rings[axis]
    return {"cluster_axis": axis, "topology": ttnn.Topology.Ring if is_ring else ttnn.Topology.Linear}


def product(x, weight, mesh, axis, **other):
    *outer, width = x.shape
    grid = mesh.compute_with_storage_grid_size()
    return ttnn.experimental.all_gather_minimal_matmul_async(
        x,
        weight,
        config=ttnn.MinimalMatmulConfig(
            K_block_size=2, compute_with_storage_grid_size=ttnn.CoreCoord(grid.x, grid.y - 1)
        ),
        persistent_output_buffer=ttnn.empty((*outer, width * mesh.shape[axis]), layout=ttnn.TILE_LAYOUT, device=mesh),
        multi_device_global_semaphore=semaphores(mesh),
        num_workers_per_link=grid.x,
        compute_kernel_config=CONFIG,
        **along(mesh, axis),
        **other,
    )


def norm(x, mesh, axis, links=1, **other):
    return ttnn.experimental.dit_fused_distributed_layernorm(
        x,
        axis,
        mesh,
        semaphores(mesh),
        topology=along(mesh, axis)["topology"],
        persistent_output_buffer=ttnn.experimental.dit_fused_distributed_layernorm_create_stats_buffer(
            x, axis, mesh, num_links=links
        ),
        num_preferred_links=links,
        compute_kernel_config=CONFIG,
        **other,
    )


@pytest.mark.parametrize("system, shape, axis, fabric", AXES)
def test_product_of_what_all_chips_have(opened, system, shape, axis, fabric):
    """Whole numbers, so that the order of sums doesn't matter; each chip has columns of its own."""
    mesh = opened(system, shape, fabric)
    chips, others = shape[axis], shape[1 - axis]
    x, weight = torch.randint(-4, 5, (1, 1, 32 * others, 64 * chips)), torch.randint(-2, 3, (64 * chips, 96 * chips))
    bias = torch.randint(-8, 9, (1, 96 * chips))
    placed = [WHOLE, WHOLE]
    placed[axis] = SHARD(1)
    mapper = ttnn.create_mesh_mapper(mesh, ttnn.MeshMapperConfig(placed))
    matrix, row = (
        ttnn.from_torch(values.float(), ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=mesh, mesh_mapper=mapper)
        for values in (weight, bias)
    )
    outs = product(split(x.float(), mesh, axis), matrix, mesh, axis, bias_tensor=row, chunks=3, dtype=ttnn.float32)
    expected = (x.double() @ weight.double() + bias).float()
    for place, out in enumerate(outs):
        columns = expected.unflatten(-1, (chips, 3, 32))[..., place, :].flatten(-2)
        assert torch.equal(joined(out, mesh, axis), columns)


def test_product_with_an_activation(opened):
    mesh = opened("n300", (1, 2), LINE)
    x, weight = torch.randn(1, 1, 45, 128).bfloat16().float(), torch.randn(128, 64).bfloat16().float()
    matrix = ttnn.from_torch(weight, ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=mesh)
    gelu = ttnn.UnaryWithParam(ttnn.UnaryOpType.GELU_TANH)
    (out,) = product(split(x, mesh, 1), matrix, mesh, 1, fused_activation=gelu)
    expected = F.gelu(x @ weight, approximate="tanh")
    for chip in ttnn.get_device_tensors(out):
        assert (ttnn.to_torch(chip, torch.float32) - expected).norm() < 4e-3 * expected.norm()


@pytest.mark.parametrize("system, shape, axis, fabric", AXES)
@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_norm_of_rows_on_several_chips(opened, system, shape, axis, fabric, offset):
    mesh = opened(system, shape, fabric)
    width = 64 * shape[axis]
    # Each chip's features have a mean and a spread of their own.
    spread = torch.linspace(0.5, 2, shape[axis]).repeat_interleave(64)
    x = (torch.randn(1, 1, 64 * shape[1 - axis], width) * spread + offset * spread).bfloat16().float()
    weight, bias = (torch.randn(1, 1, 1, width).bfloat16().float() for _ in range(2))
    parameters = {"weight": split(weight, mesh, axis), "bias": split(bias, mesh, axis)}
    out = joined(norm(split(x, mesh, axis), mesh, axis, epsilon=1e-6, **parameters), mesh, axis)
    expected = F.layer_norm(x, (width,), weight.flatten(), bias.flatten(), 1e-6)
    assert (out - expected).norm() < 4e-3 * expected.norm()


def test_norm_without_parameters_is_nearly_that_of_one_chip(opened):
    mesh = opened("t3k", (2, 4), LINE)
    x = torch.randn(1, 1, 64, 512).bfloat16().float()
    whole = ttnn.from_torch(x, ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=mesh.chips[0])
    alone = ttnn.to_torch(ttnn.layer_norm(whole, epsilon=1e-6, compute_kernel_config=CONFIG), torch.float32)
    out = joined(norm(split(x, mesh, 1), mesh, 1, epsilon=1e-6), mesh, 1)
    assert (out - alone).norm() < 2e-3 * alone.norm()


@pytest.mark.parametrize("rows", [1, 64, 96, 128, 545, 1120])
@pytest.mark.parametrize("links", [1, 2])
def test_room_for_statistics(opened, rows, links):
    """Mean and variance of 32 rows in fp32 for each of 17 rows of tiles; one core has few rows, a link its share."""
    mesh = opened("galaxy", (8, 4), RING)
    x = ttnn.empty((1, 1, rows, 64), layout=ttnn.TILE_LAYOUT, device=mesh)
    buffer = ttnn.experimental.dit_fused_distributed_layernorm_create_stats_buffer(x, 1, mesh, num_links=links)
    tiles = math.ceil(rows / 32)
    packets = tiles if tiles < 4 else links * math.ceil(tiles / min(tiles, 17 * links))
    assert list(buffer.shape) == [1, 1, 4 * packets, 17 * 64]


def test_over_more_links_rows_would_be_dealt_out_wrongly(opened):
    mesh = opened("galaxy", (8, 4), RING)
    x = ttnn.zeros((1, 1, 160, 64), layout=ttnn.TILE_LAYOUT, device=mesh)
    with pytest.raises(RuntimeError, match="would hang"):
        norm(x, mesh, 1, links=4)
