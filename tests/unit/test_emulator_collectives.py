"""What chips of the emulated device make together: gathers and sums, against torch."""

import pytest
import torch

import tt_flux_kontext.emulator as ttnn
from tt_flux_kontext.emulator import collectives
from tt_flux_kontext.emulator.collectives import DIRECT_BYTES

TILE, ROW_MAJOR = ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT
LINE, RING = ttnn.FabricConfig.FABRIC_1D, ttnn.FabricConfig.FABRIC_1D_RING


@pytest.fixture
def opened():
    """Opens a mesh of all chips of a system."""
    devices = []

    def open_mesh(system, shape, fabric=LINE):
        ttnn.configure(system)
        ttnn.set_fabric_config(fabric)
        devices.append(ttnn.open_mesh_device(ttnn.MeshShape(shape), l1_small_size=32768))
        return devices[-1]

    yield open_mesh
    for device in devices:
        ttnn.close_mesh_device(device)
    ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)
    ttnn.configure()


def spread(chips, mesh, dtype=ttnn.bfloat16, layout=TILE):
    """A tensor of which each chip of the mesh has its part: ``chips[rows, columns, ...]``."""
    placements = [ttnn.PlacementShard(0), ttnn.PlacementShard(1)]
    mapper = ttnn.create_mesh_mapper(mesh, ttnn.MeshMapperConfig(placements))
    x = ttnn.from_torch(chips, dtype, layout=layout, device=mesh, mesh_mapper=mapper)
    return ttnn.reshape(x, x.shape[2:])


def by_chip(tensor, mesh):
    parts = [ttnn.to_torch(part, torch.float32) for part in ttnn.get_device_tensors(tensor)]
    return torch.stack(parts).unflatten(0, tuple(mesh.shape))


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32, ttnn.bfloat8_b])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_gather(opened, dtype, axis, dim):
    mesh = opened("t3k", (2, 4))
    x = spread(torch.randn(2, 4, 2, 32, 64), mesh, dtype)
    out, parts = ttnn.all_gather(x, dim, cluster_axis=axis), by_chip(x, mesh)
    expected = torch.cat(parts.unbind(axis), dim if dim < 0 else dim + 1)
    assert out.dtype is dtype and out.shape == expected.shape[1:]
    assert torch.equal(by_chip(out, mesh), torch.stack([expected] * mesh.shape[axis], axis))


def test_gather_of_partial_tiles(opened):
    mesh = opened("n300", (1, 2))
    for layout in (TILE, ROW_MAJOR):
        x = spread(torch.randn(1, 2, 5, 7), mesh, layout=layout)
        assert torch.equal(by_chip(ttnn.all_gather(x, 1), mesh)[0, 1], torch.cat(list(by_chip(x, mesh)[0]), 1))


def test_a_gathered_tensor_is_held_once(opened):
    mesh = opened("t3k", (2, 4))
    x = spread(torch.randn(1, 4, 32, 32).repeat(2, 1, 1, 1), mesh)
    before = ttnn.get_memory_view(mesh, ttnn.BufferType.DRAM).total_bytes_allocated_per_bank
    out = ttnn.all_gather(x, 0, cluster_axis=1)
    assert len({part.address for part in ttnn.get_device_tensors(out)}) == 2
    assert ttnn.get_memory_view(mesh, ttnn.BufferType.DRAM).total_bytes_allocated_per_bank == before + 2048


SYSTEMS = [  # small tensors go round a ring another way
    ("n300", (1, 2), 1, LINE, 0),
    ("t3k", (2, 4), 1, LINE, 0),
    ("t3k", (2, 4), 0, LINE, 0),
    ("t3k", (8, 1), 0, RING, 0),
    ("t3k", (8, 1), 0, RING, DIRECT_BYTES),
    ("p150x4", (2, 2), 1, RING, 0),
    ("galaxy", (8, 4), 1, RING, 0),
    ("galaxy", (8, 4), 1, RING, DIRECT_BYTES),
]
# Of the largest partial sum, as often as there are sums; TF32 is cut, not rounded.
ROUNDING = {ttnn.bfloat16: 2**-8, ttnn.float32: 2**-9, ttnn.bfloat8_b: 2**-6}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("system, shape, axis, fabric, direct_bytes", SYSTEMS)
def test_sums(opened, monkeypatch, system, shape, axis, fabric, dtype, direct_bytes):
    monkeypatch.setattr(collectives, "DIRECT_BYTES", direct_bytes)
    mesh = opened(system, shape, fabric)
    x = spread(torch.randn(*shape, 1, 64, 512), mesh, dtype)
    parts = by_chip(x, mesh)
    exact = parts.sum(axis)
    limit = ROUNDING[dtype] * (shape[axis] - 1) * parts.abs().sum(axis).max()
    reduced = by_chip(ttnn.all_reduce(x, cluster_axis=axis), mesh)
    for on_chip in reduced.unbind(axis):
        assert (on_chip - exact).abs().max() < limit
        assert torch.equal(on_chip, reduced.select(axis, 0))
    scattered = by_chip(ttnn.reduce_scatter(x, -1, cluster_axis=axis), mesh)
    assert torch.equal(torch.cat(scattered.unbind(axis), -1), reduced.select(axis, 0))


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
@pytest.mark.parametrize("fabric", [LINE, RING])
def test_sums_of_small_integers_are_exact(opened, shape, fabric):
    mesh = opened("t3k", shape, fabric)
    parts = torch.randint(-8, 8, (*shape, 64, 1024)).float()
    x = spread(parts, mesh)
    assert torch.equal(by_chip(ttnn.all_reduce(x), mesh), parts.sum((0, 1)).expand(*shape, 64, 1024))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_sums_of_few_tiles(opened, dtype):
    """None of whose dimensions divides by the chips."""
    mesh = opened("t3k", (2, 4))
    parts = torch.randint(-8, 8, (2, 4, 45, 96)).float()
    out = ttnn.all_reduce(spread(parts, mesh, dtype), cluster_axis=1)
    assert out.dtype is dtype
    assert torch.equal(by_chip(out, mesh), parts.sum(1, keepdim=True).expand(2, 4, 45, 96))


def test_bfloat16_is_rounded_at_every_hop(opened):
    """Down a line to the first chip: 1 is lost beside 512 if they meet first, and not if the ones do."""
    mesh = opened("t3k", (2, 4))
    ones_last, ones_first = torch.tensor([1.0, 512, 1, 1]), torch.tensor([1.0, 1, 1, 512])
    for column, first in ((ones_last, 516), (ones_first, 512)):
        parts = column.view(1, 4, 1, 1).expand(2, 4, 32, 128)
        out = ttnn.reduce_scatter(spread(parts, mesh), -1, cluster_axis=1)
        assert by_chip(out, mesh)[0, 0, 0, 0] == first


def test_partition_undoes_a_gather(opened):
    mesh = opened("t3k", (2, 4))
    x = spread(torch.randn(2, 4, 64, 64), mesh)
    for axis, dim in ((0, 0), (1, 1), (1, -2)):
        back = ttnn.mesh_partition(ttnn.all_gather(x, dim, cluster_axis=axis), dim, axis)
        assert torch.equal(by_chip(back, mesh), by_chip(x, mesh))


def halo(x, mesh, axis=0, dim=1, before=1, after=1, semaphores=None, **other):
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))})
    neighbour, barrier = semaphores or [ttnn.create_global_semaphore(mesh, cores, 0) for _ in range(2)]
    common = {"padding_mode": "zeros", "neighbor_semaphore": [neighbour], "barrier_semaphore": [barrier]} | other
    return ttnn.experimental.neighbor_pad_async(
        x, dim=[dim], padding_left=[before], padding_right=[after], cluster_axis=[axis], **common
    )


@pytest.mark.parametrize("axis, dim, before, after", [(0, 1, 1, 1), (1, 2, 2, 1), (1, 1, 0, 8), (0, 0, 1, 0)])
def test_halo(opened, axis, dim, before, after):
    mesh = opened("t3k", (2, 4))
    parts = torch.randn(2, 4, 1, 8, 6, 5)
    out = halo(spread(parts, mesh, ttnn.float32, ROW_MAJOR), mesh, axis, dim, before, after)
    # The whole map between zeros, in windows.
    size, chips = parts.shape[2 + dim], mesh.shape[axis]
    whole = torch.cat(parts.unbind(axis), dim + 1).movedim(dim + 1, -1)
    whole = torch.nn.functional.pad(whole, (before, after))
    windows = whole.unfold(-1, size + before + after, size).movedim(-1, dim + 1).movedim(-1, axis)
    assert windows.shape[axis] == chips
    assert torch.equal(by_chip(out, mesh), windows)


def test_a_convolution_over_chips(opened):
    """Rows of a map over four chips: with a halo each chip convolves by itself, and sees no edge."""
    mesh = opened("t3k", (2, 4)).create_submeshes(ttnn.MeshShape(1, 4))[1]
    image, kernel = torch.randint(-4, 4, (32, 16, 32)).float(), torch.randint(-2, 2, (32, 32, 3, 3)).float()
    rows = spread(image.view(1, 4, 1, 8, 16, 32), mesh, layout=ROW_MAJOR)
    out = ttnn.conv2d(
        input_tensor=ttnn.reshape(halo(rows, mesh, axis=1), (1, 1, 160, 32)),
        weight_tensor=ttnn.from_torch(kernel, dtype=ttnn.bfloat16),
        device=mesh,
        in_channels=32,
        out_channels=32,
        batch_size=1,
        input_height=10,
        input_width=16,
        kernel_size=(3, 3),
        padding=(0, 1),
        dtype=ttnn.float32,
    )
    expected = torch.nn.functional.conv2d(image.permute(2, 0, 1), kernel, padding=1).permute(1, 2, 0)
    assert torch.equal(by_chip(out, mesh).reshape(32, 16, 32), expected)


def test_semaphores_take_turns(opened):
    mesh = opened("t3k", (2, 4))
    x, cores = ttnn.zeros((1, 8, 8, 32), device=mesh), ttnn.CoreRangeSet(set())
    first, second = ([ttnn.create_global_semaphore(mesh, cores, 0) for _ in range(2)] for _ in range(2))
    for semaphores in (first, second, first):
        halo(x, mesh, semaphores=semaphores)
    with pytest.raises(RuntimeError, match="twice in a row"):
        halo(x, mesh, semaphores=[first[0], second[1]])
    other = mesh.create_submeshes(ttnn.MeshShape(2, 2))[0]
    with pytest.raises(RuntimeError, match="semaphores must be of"):
        halo(x, mesh, semaphores=[ttnn.create_global_semaphore(other, cores, 0) for _ in range(2)])


def test_submeshes_have_the_fabric_of_their_mesh(opened):
    rows = opened("t3k", (2, 4)).create_submeshes(ttnn.MeshShape(1, 4))
    x = ttnn.from_torch(torch.ones(32, 128), dtype=ttnn.bfloat16, layout=TILE, device=rows[1])
    assert torch.equal(by_chip(ttnn.all_reduce(x), rows[1]), torch.full((1, 4, 32, 128), 4.0))


def test_what_a_mesh_lacks(opened):
    for fabric, words in ((ttnn.FabricConfig.DISABLED, "no fabric"), (LINE, "FABRIC_1D_RING")):
        mesh = opened("t3k", (1, 8), fabric)
        x = ttnn.zeros((32, 256), layout=TILE, device=mesh)
        with pytest.raises(RuntimeError, match=words):
            ttnn.all_reduce(x, topology=ttnn.Topology.Ring)
        ttnn.close_mesh_device(mesh)
    square = opened("t3k", (2, 4))
    x = ttnn.zeros((32, 32), layout=TILE, device=square)
    with pytest.raises(RuntimeError, match="requires cluster_axis"):
        ttnn.all_gather(x, 0)
    with pytest.raises(RuntimeError, match="more than one chip"):
        ttnn.all_reduce(ttnn.zeros((32, 32), layout=TILE, device=square.chips[0]))
    for operation in (ttnn.all_reduce, lambda x: ttnn.mesh_partition(x, 1, 1)):  # TT-NN crashes
        with pytest.raises(RuntimeError, match="must be on device"):
            operation(ttnn.from_device(x))
    with pytest.raises(RuntimeError, match="deallocated"):
        ttnn.deallocate(x)
        ttnn.all_gather(x, 0, cluster_axis=1)
