"""Tensors, their buffers, and the memory of the emulated device."""

import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tt_flux_kontext.emulator as ttnn

TILE, ROW_MAJOR = ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT


@pytest.fixture
def device():
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1))
    yield device
    ttnn.close_mesh_device(device)


@pytest.fixture
def restore_system():
    yield
    ttnn.configure()


def allocated(device, kind=ttnn.BufferType.DRAM):
    return ttnn.get_memory_view(device, kind).total_bytes_allocated_per_bank


# What TT-NN 0.81.1 reports on its mock devices.
@pytest.mark.parametrize(
    "system, mesh, arch, grid, banks, bank_bytes",
    [
        ("n150", (1, 1), ttnn.Arch.WORMHOLE_B0, (8, 8), 12, 1_072_693_184),
        ("n300", (1, 2), ttnn.Arch.WORMHOLE_B0, (8, 8), 12, 1_072_693_184),
        ("t3k", (2, 4), ttnn.Arch.WORMHOLE_B0, (8, 8), 12, 1_072_693_184),
        ("galaxy", (8, 4), ttnn.Arch.WORMHOLE_B0, (8, 9), 12, 1_072_693_184),
        ("p100", (1, 1), ttnn.Arch.BLACKHOLE, (11, 10), 7, 4_277_141_376),
        ("p150", (1, 1), ttnn.Arch.BLACKHOLE, (11, 10), 8, 4_277_141_376),
        ("p300", (1, 2), ttnn.Arch.BLACKHOLE, (11, 10), 8, 4_277_141_376),
        ("p150x4", (2, 2), ttnn.Arch.BLACKHOLE, (11, 10), 8, 4_277_141_376),
    ],
)
def test_systems(restore_system, system, mesh, arch, grid, banks, bank_bytes):
    ttnn.configure(system)
    device = ttnn.open_mesh_device(ttnn.MeshShape(mesh))
    view = ttnn.get_memory_view(device, ttnn.BufferType.DRAM)
    assert device.arch() is arch and tuple(device.compute_with_storage_grid_size()) == grid
    assert (view.num_banks, view.total_bytes_per_bank) == (banks, bank_bytes)
    assert device.get_num_devices() == ttnn.get_num_devices() == math.prod(mesh) and tuple(device.shape) == mesh
    ttnn.close_mesh_device(device)


@pytest.mark.parametrize(
    "shape, dtype, layout, bytes_per_bank",
    [
        ((1, 1, 32, 32), ttnn.bfloat16, TILE, 2048),
        ((1, 3072), ttnn.bfloat16, TILE, 16384),
        ((3072, 3072), ttnn.bfloat8_b, TILE, 835_584),
        ((3072, 3072), ttnn.bfloat4_b, TILE, 442_368),
        ((77, 768), ttnn.bfloat16, ROW_MAJOR, 10_752),
        ((32128, 4096), ttnn.bfloat16, ROW_MAJOR, 21_938_176),
        ((1, 77), ttnn.uint32, ROW_MAJOR, 320),
        ((100, 3), ttnn.bfloat16, ROW_MAJOR, 288),
    ],
)
def test_bytes_are_those_of_the_library_on_an_n150(device, shape, dtype, layout, bytes_per_bank):
    tensor = ttnn.empty(shape, dtype=dtype, layout=layout, device=device)
    assert allocated(device) == bytes_per_bank
    del tensor
    assert allocated(device) == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 70), max_size=3))
def test_tiles_pad_the_last_two_dimensions(shape):
    tensor = ttnn.zeros(shape, layout=TILE)
    full = [1] * (2 - len(shape)) + shape
    assert tensor.shape == shape
    assert tensor.padded_shape == full[:-2] + [math.ceil(size / 32) * 32 for size in full[-2:]]
    assert ttnn.zeros(shape).padded_shape == shape


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32, ttnn.uint32])
def test_values_come_back(device, dtype):
    values = torch.arange(6).view(2, 3)
    tensor = ttnn.from_torch(values, dtype=dtype, layout=TILE, device=device)
    expected = {ttnn.bfloat16: torch.bfloat16, ttnn.float32: torch.float32, ttnn.uint32: torch.uint32}[dtype]
    assert ttnn.to_torch(tensor).dtype is expected
    assert torch.equal(ttnn.to_torch(tensor, torch.int64), values)
    assert torch.equal(ttnn.to_torch(ttnn.from_device(tensor), torch.int64), values)


def test_from_torch_copies():
    values = torch.ones(4, dtype=torch.bfloat16)
    tensor = ttnn.from_torch(values)
    values.zero_()
    ttnn.to_torch(tensor).zero_()
    assert ttnn.to_torch(tensor).sum() == 4


def test_dtype_and_layout_conversions(device):
    x = ttnn.from_torch(torch.randn(33, 64), dtype=ttnn.bfloat8_b, device=device)
    assert x.layout is TILE
    assert ttnn.to_layout(x, ROW_MAJOR).dtype is ttnn.bfloat16
    assert ttnn.to_layout(x, TILE) is x
    assert ttnn.typecast(x, ttnn.float32).dtype is ttnn.float32
    host = ttnn.typecast(ttnn.from_torch(torch.ones(2, 3)), ttnn.bfloat8_b)
    assert host.layout is TILE and host.storage_type() is ttnn.StorageType.HOST
    assert ttnn.to_torch(ttnn.typecast(ttnn.from_torch(torch.tensor([1 + 2**-8]), device=device), ttnn.bfloat16)) == 1.0


def test_last_reference_frees(device):
    x = ttnn.zeros([64, 64], layout=TILE, device=device)
    for _ in range(3):
        x = ttnn.add(x, 1.0)
    assert allocated(device) == 2048 and device.peak_dram_bytes == 2 * 2048 * 12
    del x
    gc.collect()
    assert allocated(device) == 0
    device.reset_peak_dram_bytes()
    assert device.peak_dram_bytes == 0


def test_l1_is_counted_apart(device):
    x = ttnn.zeros([64, 64], layout=TILE, device=device, memory_config=ttnn.L1_MEMORY_CONFIG)
    assert allocated(device) == 0 and allocated(device, ttnn.BufferType.L1) == 2048
    assert ttnn.add(x, x).memory_config() == ttnn.L1_MEMORY_CONFIG
    assert ttnn.matmul(x, x).memory_config() == ttnn.DRAM_MEMORY_CONFIG


def test_a_view_shares_the_buffer(device):
    x = ttnn.from_torch(torch.randn(2, 64, 96), layout=TILE, device=device)
    before = allocated(device)
    view = ttnn.reshape(x, (1, 1, -1, 96))
    assert allocated(device) == before and view.shape == [1, 1, 128, 96]
    x.deallocate()
    assert view.is_allocated() and allocated(device) == before
    del x
    view.deallocate()
    assert not view.is_allocated() and allocated(device) == 0


def test_forced_deallocation_takes_views_along(device):
    x = ttnn.zeros([64, 96], layout=TILE, device=device)
    view = ttnn.reshape(x, (1, 64, 96))
    ttnn.deallocate(x)
    assert allocated(device) == 0 and x.device() is None and x.shape == [64, 96]
    with pytest.raises(RuntimeError, match="deallocated"):
        ttnn.add(view, 1.0)


@pytest.mark.parametrize(
    "old, new, layout, is_view",
    [
        ((1, 128, 128, 64), (1, 1, 16384, 64), TILE, True),
        ((1, 1, 77, 96), (77, 96), TILE, True),
        ((3072,), (1, 3072), TILE, True),
        ((1, 1, 64, 96), (1, 2, 32, 96), TILE, True),
        ((1, 1, 64, 96), (1, 1, 96, 64), TILE, False),
        ((2, 77, 96), (1, 1, 154, 96), TILE, False),
        ((1, 1, 64, 96), (1, 4, 16, 96), TILE, False),
        ((28, 1, 96), (1, 1, 28, 96), TILE, False),
        ((1, 128, 128, 64), (1, 1, 16384, 64), ROW_MAJOR, True),
        ((1, 1, 64, 96), (1, 1, 96, 64), ROW_MAJOR, False),
    ],
)
def test_reshape_is_a_view_where_the_library_has_one(device, old, new, layout, is_view):
    x = ttnn.from_torch(torch.randn(old), dtype=ttnn.bfloat16, layout=layout, device=device)
    before = allocated(device)
    y = ttnn.reshape(x, new)
    assert (allocated(device) == before) is is_view
    assert torch.equal(ttnn.to_torch(y), ttnn.to_torch(x).view(new))


def test_out_of_memory_names_needed_and_free_bytes(device):
    kept = [ttnn.empty([8192, 16384], layout=TILE, device=device) for _ in range(47)]
    with pytest.raises(
        RuntimeError,
        match=r"Out of Memory: Not enough space to allocate 268435456 B DRAM.*22370304 B.*free: 21288896 B",
    ):
        ttnn.empty([8192, 16384], layout=TILE, device=device)
    kept.clear()
    assert allocated(device) == 0
    ttnn.empty([8192, 16384], layout=TILE, device=device)


def test_a_closed_device_allocates_nothing(device):
    ttnn.close_mesh_device(device)
    with pytest.raises(RuntimeError, match="closed"):
        ttnn.empty([32, 32], device=device)
    assert allocated(device) == 0


def test_unknown_systems_and_meshes_are_refused(restore_system):
    with pytest.raises(ValueError, match="n150, n300, t3k"):
        ttnn.configure("n151")
    with pytest.raises(RuntimeError, match="does not fit"):
        ttnn.open_mesh_device(ttnn.MeshShape(1, 2))
