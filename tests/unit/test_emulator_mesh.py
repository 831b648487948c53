"""Meshes of the emulated device: tensors split over chips, and operations on each chip."""

import itertools

import pytest
import torch

import tt_flux_kontext.emulator as ttnn

TILE, ROW_MAJOR = ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT
SHARD, WHOLE = ttnn.PlacementShard, ttnn.PlacementReplicate()


@pytest.fixture
def mesh():
    """A T3K: two rows of four chips."""
    ttnn.configure("t3k")
    device = ttnn.open_mesh_device(ttnn.MeshShape(2, 4))
    yield device
    ttnn.close_mesh_device(device)
    ttnn.configure()


def split(values, mesh, *placements, dtype=ttnn.bfloat16, layout=TILE, device=True):
    mapper = ttnn.create_mesh_mapper(mesh, ttnn.MeshMapperConfig(placements))
    return ttnn.from_torch(values, dtype, layout=layout, device=mesh if device else None, mesh_mapper=mapper)


def joined(tensor, mesh, *dims):
    return ttnn.to_torch(tensor, mesh_composer=ttnn.create_mesh_composer(mesh, ttnn.MeshComposerConfig(dims)))


def allocated(device):
    return ttnn.get_memory_view(device, ttnn.BufferType.DRAM).total_bytes_allocated_per_bank


def test_splitting_and_joining(mesh):
    values = torch.arange(64 * 128.0).view(64, 128)
    x = split(values, mesh, SHARD(0), SHARD(-1), dtype=ttnn.float32)
    assert x.shape == [32, 32] and x.device() is mesh and isinstance(x, ttnn.Tensor)
    parts = ttnn.get_device_tensors(x)
    for part, (row, column) in zip(parts, itertools.product(range(2), range(4)), strict=True):
        expected = values[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert torch.equal(ttnn.to_torch(part), expected)
    assert torch.equal(joined(x, mesh, 0, 1), values)
    columns = split(values, mesh, WHOLE, SHARD(1), dtype=ttnn.float32)
    assert torch.equal(joined(columns, mesh, 0, 1), values.repeat(2, 1))


def test_the_host_holds_shards_too(mesh):
    values = torch.randn(64, 128).bfloat16()
    x = split(values, mesh, SHARD(1), SHARD(0), device=False)
    assert x.storage_type() is ttnn.StorageType.HOST and x.device() is None
    assert len(ttnn.get_device_tensors(x)) == 8 and x.shape == [16, 64]
    on_device = ttnn.to_device(ttnn.typecast(x, ttnn.float32), mesh)
    assert torch.equal(joined(on_device, mesh, 1, 0), values.float())
    assert torch.equal(joined(ttnn.from_device(on_device), mesh, 1, 0), values.float())


def test_operations_are_those_of_the_chips(mesh):
    a, b = torch.randn(64, 128), torch.randn(128, 256)
    rows, columns = split(a, mesh, SHARD(0), WHOLE), split(b, mesh, WHOLE, SHARD(1))
    product = ttnn.linear(rows, columns)
    parts = zip(*map(ttnn.get_device_tensors, (product, rows, columns)), strict=True)
    for part, row, column in parts:
        assert torch.equal(ttnn.to_torch(part), ttnn.to_torch(ttnn.linear(row, column)))
    assert torch.nn.functional.mse_loss(joined(product, mesh, 0, 1).float(), a @ b).sqrt() < 0.1


def test_results_of_several_tensors_and_none(mesh):
    x = split(torch.randn(1, 1, 64, 8 * 96), mesh, WHOLE, SHARD(3))
    q, k, v = ttnn.experimental.nlp_create_qkv_heads(x, num_heads=2, transpose_k_heads=False)
    assert q.shape == v.shape == [1, 2, 64, 32] and q.device() is mesh
    joint = ttnn.concat([q, k], 2)
    assert joint.shape == [1, 2, 128, 32] and len(ttnn.get_device_tensors(joint)) == 8


def test_equal_values_are_computed_once_and_take_memory_on_each_chip(mesh):
    x = ttnn.from_torch(torch.randn(64, 64), dtype=ttnn.bfloat16, layout=TILE, device=mesh)
    y = ttnn.gelu(x)
    assert len({part.address for part in ttnn.get_device_tensors(y)}) == 1
    assert allocated(mesh) == 2 * 2048 and mesh.peak_dram_bytes == 2 * 2048 * 12
    assert [allocated(chip) for chip in mesh.create_submeshes(ttnn.MeshShape(1, 1))] == [2 * 2048] * 8
    halves = split(torch.randn(64, 64), mesh, WHOLE, SHARD(1))
    assert len({part.address for part in ttnn.get_device_tensors(ttnn.add(halves, 1.0))}) == 4
    del x, y
    assert allocated(mesh) == 2048


def test_views_and_deallocation_on_each_chip(mesh):
    x = ttnn.from_torch(torch.randn(2, 64, 96), layout=TILE, device=mesh)
    before = allocated(mesh)
    view = ttnn.reshape(x, (1, 1, 128, 96))
    assert allocated(mesh) == before
    x.deallocate()
    assert view.is_allocated() and allocated(mesh) == before
    ttnn.deallocate(x)
    assert x.device() is None and {allocated(chip) for chip in mesh.chips} == {0}
    with pytest.raises(RuntimeError, match="deallocated"):
        ttnn.add(view, 1.0)


def test_files_keep_shards(mesh, tmp_path):
    values = torch.randn(64, 128)
    for placements in ((SHARD(0), SHARD(1)), (WHOLE, SHARD(1)), (WHOLE, WHOLE)):
        x = split(values, mesh, *placements, dtype=ttnn.float32)
        file = tmp_path / "x.tensorbin"
        ttnn.dump_tensor(file, x)
        assert file.stat().st_size < values.nbytes + 200  # what is equal is there once
        for loaded in (ttnn.load_tensor(file), ttnn.load_tensor(file, device=mesh)):
            assert loaded.shape == x.shape
            assert torch.equal(joined(loaded, mesh, 0, 1), joined(x, mesh, 0, 1))
    ttnn.dump_tensor(file, ttnn.from_torch(values))
    assert torch.equal(joined(ttnn.load_tensor(file, device=mesh), mesh, 0, 1), values.repeat(2, 4))


def test_copying_to_a_tensor_that_is_there(mesh):
    target = ttnn.zeros((32, 32), layout=TILE, device=mesh)
    view, before = ttnn.reshape(target, (1, 32, 32)), allocated(mesh)
    ttnn.copy_host_to_device_tensor(ttnn.from_torch(torch.ones(32, 32), dtype=ttnn.bfloat16, layout=TILE), target)
    assert torch.equal(joined(target, mesh, 0, 1).float(), torch.ones(64, 128))
    values = torch.randn(64, 128).bfloat16()
    ttnn.copy_host_to_device_tensor(split(values, mesh, SHARD(0), SHARD(1), device=False), target)
    assert torch.equal(joined(view, mesh, 1, 2)[0], values) and allocated(mesh) == before


def test_submeshes_share_chips(mesh):
    first, second = mesh.create_submeshes(ttnn.MeshShape(1, 4))
    assert first.shape == (1, 4) and first.get_device_ids() == [0, 1, 2, 3] and second.get_device_ids() == [4, 5, 6, 7]
    x = ttnn.zeros((32, 32), layout=TILE, device=second)
    assert allocated(first) == 0 and allocated(second) == allocated(mesh) == 2048
    ttnn.close_mesh_device(mesh)
    with pytest.raises(RuntimeError, match="closed"):
        ttnn.add(x, 1.0)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (4, 2), (2, 2), (1, 4), (1, 1)])
def test_other_shapes_of_a_mesh(mesh, shape):
    device = ttnn.open_mesh_device(ttnn.MeshShape(shape))
    assert device.shape == shape and device.get_num_devices() == shape[0] * shape[1]
    ttnn.close_mesh_device(device)


def test_meshes_that_do_not_fit_each_other(mesh):
    x = ttnn.zeros((64, 32), layout=TILE, device=mesh)
    row = ttnn.zeros((64, 32), layout=TILE, device=mesh.create_submeshes(ttnn.MeshShape(1, 4))[0])
    refused = [
        ("does not fit", lambda: ttnn.open_mesh_device(ttnn.MeshShape(3, 3))),
        ("different devices", lambda: ttnn.add(x, row)),
        ("4, 8. shards or chips", lambda: ttnn.to_device(ttnn.from_device(row), mesh)),
        ("4 shards for 8 chips", lambda: ttnn.copy_host_to_device_tensor(ttnn.from_device(row), x)),
    ]
    for words, call in refused:
        with pytest.raises(RuntimeError, match=words):
            call()


def test_a_fabric_needs_all_chips():
    ttnn.configure("t3k")
    try:
        ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D)
        with pytest.raises(RuntimeError, match="all chips"):
            ttnn.open_mesh_device(ttnn.MeshShape(1, 4))
    finally:
        ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)
        ttnn.configure()


@pytest.mark.parametrize("system, name", [("n300", "N300"), ("galaxy", "GALAXY"), ("p150x4", "P150_X4")])
def test_cluster_type(system, name):
    ttnn.configure(system)
    assert ttnn.cluster.get_cluster_type() is ttnn.cluster.ClusterType[name]
    ttnn.configure()
