"""Attention of a sequence that is split over chips, against torch in fp32 and against one chip's."""

import pytest
import torch
import torch.nn.functional as F

import tt_flux_kontext.emulator as ttnn
from tt_flux_kontext.emulator.ring_attention import visits

LINE, RING = ttnn.FabricConfig.FABRIC_1D, ttnn.FabricConfig.FABRIC_1D_RING
SHARD, WHOLE = ttnn.PlacementShard, ttnn.PlacementReplicate()
CORES = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))})
HEADS, ROWS, WIDTH = 4, 64, 64


@pytest.fixture
def opened():
    """Opens a mesh of all chips of a T3K."""
    devices = []

    def open_mesh(*shape, fabric=LINE):
        ttnn.configure("t3k")
        ttnn.set_fabric_config(fabric)
        devices.append(ttnn.open_mesh_device(ttnn.MeshShape(shape)))
        return devices[-1]

    yield open_mesh
    for device in devices:
        ttnn.close_mesh_device(device)
    ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)
    ttnn.configure()


@pytest.fixture
def randn():
    """Random values that are exact in bf16, in fp32."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).bfloat16().float()


@pytest.fixture
def qkv(randn):
    return lambda rows: [randn(1, HEADS, rows, WIDTH) for _ in range(3)]


def config(fidelity="HiFi3", fp32=True):
    return ttnn.WormholeComputeKernelConfig(math_fidelity=ttnn.MathFidelity[fidelity], fp32_dest_acc_en=fp32)


def program(rows=7):
    cores = ttnn.CoreCoord(8, rows)
    return ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=cores, q_chunk_size=32, k_chunk_size=128, exp_approx_mode=False
    )


def put(values, mesh, sp_axis, split=True):
    """Rows over the SP axis, or whole; heads over the other."""
    placements = [SHARD(1), SHARD(1)]
    placements[sp_axis] = SHARD(2) if split else WHOLE
    mapper = ttnn.create_mesh_mapper(mesh, ttnn.MeshMapperConfig(placements))
    return ttnn.from_torch(values, ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=mesh, mesh_mapper=mapper)


def get(tensor, mesh, sp_axis, of_chip=None):
    """Rows and heads joined; of what all chips along SP have, one chip's."""
    parts = [ttnn.to_torch(part, torch.float32) for part in ttnn.get_device_tensors(tensor)]
    grid = [parts[i : i + mesh.shape[1]] for i in range(0, len(parts), mesh.shape[1])]
    by_heads = grid if sp_axis == 1 else list(zip(*grid))  # along SP, for each place along the other axis
    return torch.cat([torch.cat(on_chips, 2) if of_chip is None else on_chips[of_chip] for on_chips in by_heads], 1)


def buffers(mesh, like, chips):
    batch, heads, rows, width = like.shape
    return [ttnn.zeros((batch, heads, rows * chips, width), layout=ttnn.TILE_LAYOUT, device=mesh) for _ in "kv"]


def attend(mesh, q, k, v, *joint, axis=1, split=False, **other):
    """The operation's first two results."""
    chips = mesh.shape[axis]
    main, joint = [put(x, mesh, axis) for x in (q, k, v)], [put(x, mesh, axis, split) for x in joint]
    arguments = dict(zip(("persistent_output_buffer_k", "persistent_output_buffer_v"), buffers(mesh, main[0], chips)))
    if split:
        names = "persistent_output_buffer_joint_k", "persistent_output_buffer_joint_v"
        arguments |= dict(zip(names, buffers(mesh, joint[0], chips)), logical_l=joint[0].shape[2] * chips)
    arguments |= {
        "joint_strategy": "rear",
        "logical_n": q.shape[2],
        "dim": 2,
        "program_config": program(),
        "compute_kernel_config": config(),
        "multi_device_global_semaphore": [ttnn.create_global_semaphore(mesh, CORES, 0) for _ in range(2)],
        "num_links": 1,
        "cluster_axis": axis,
        "mesh_device": mesh,
        "topology": ttnn.Topology.Linear,
        "ccl_core_grid_offset": ttnn.CoreCoord(0, 7),
    }
    out, joint_out, statistics = ttnn.transformer.ring_joint_scaled_dot_product_attention(
        *main, *joint, **arguments | other
    )
    rows = sum(x.padded_shape[2] for x in (out, joint_out))
    assert statistics.shape == [*out.shape[:2], 2 * rows, 1] and statistics.dtype is ttnn.bfloat16
    return out, joint_out


def on_one_chip(mesh, q, k, v):
    chip = mesh.create_submeshes(ttnn.MeshShape(1, 1))[0]
    q, k, v = (ttnn.from_torch(x, ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=chip) for x in (q, k, v))
    out = ttnn.transformer.scaled_dot_product_attention(
        q, k, v, is_causal=False, program_config=program(), compute_kernel_config=config()
    )
    return ttnn.to_torch(out, torch.float32)


def error(values, reference):
    """Relative RMS error; the shapes must agree."""
    assert values.shape == reference.shape
    return float((values - reference).norm() / reference.norm())


# The LSE between steps is bf16, so that every step makes it worse.
@pytest.mark.parametrize(
    "shape, axis, low, high",
    [((2, 4), 0, 5e-3, 1e-2), ((2, 4), 1, 8e-3, 1.5e-2), ((1, 8), 1, 1.1e-2, 2e-2), ((8, 1), 0, 1.1e-2, 2e-2)],
)
def test_error_grows_with_the_chips(opened, qkv, shape, axis, low, high):
    mesh = opened(*shape)
    q, k, v = qkv(ROWS * mesh.shape[axis])
    reference = F.scaled_dot_product_attention(q, k, v)
    assert error(on_one_chip(mesh, q, k, v), reference) < 4e-3
    out, joint = attend(mesh, q, k, v, axis=axis)
    assert low < error(get(out, mesh, axis), reference) < high
    assert joint.shape == [1, HEADS // mesh.shape[1 - axis], 0, WIDTH]


def test_equal_keys_everywhere_give_what_one_chip_gives(opened, qkv):
    """All steps have one result then, and nothing is to be weighed."""
    mesh = opened(2, 4)
    q, k, v = qkv(ROWS)
    whole = [torch.cat([x] * 4, 2) for x in (q, k, v)]
    out, _ = attend(mesh, *whole)
    difference = get(out, mesh, 1) - torch.cat([on_one_chip(mesh, q, k, v)] * 4, 2)
    assert difference.abs().max() == 0


def test_a_chip_whose_keys_are_all_that_counts(opened, qkv):
    mesh = opened(2, 4)
    q, k, v = qkv(4 * ROWS)
    share = slice(ROWS, 2 * ROWS)
    q[..., 0], k[..., 0] = 16, 0
    k[:, :, share, 0] = 32
    out, _ = attend(mesh, q, k, v)
    assert error(get(out, mesh, 1), on_one_chip(mesh, q, k[:, :, share], v[:, :, share])) < 4e-3


@pytest.mark.parametrize("real", [1, 31, 32, 40, 63])
def test_padding_at_the_end_is_not_seen(opened, qkv, real):
    mesh = opened(2, 4)
    q, k, v = qkv(4 * ROWS)
    tokens = 3 * ROWS + real
    reference = F.scaled_dot_product_attention(q, k[:, :, :tokens], v[:, :, :tokens])
    out, _ = attend(mesh, q, k, v, logical_n=tokens)
    assert error(get(out, mesh, 1), reference) < 1.5e-2
    k[:, :, tokens:], v[:, :, tokens:] = 1e4, -1e4
    again, _ = attend(mesh, q, k, v, logical_n=tokens)
    assert torch.equal(get(again, mesh, 1), get(out, mesh, 1))


@pytest.mark.parametrize("shape, axis, rows, split", [
    ((2, 4), 1, 128, True), ((2, 4), 1, 40, False), ((2, 4), 0, 64, True), ((1, 8), 1, 256, True), ((1, 8), 1, 77, False),
])  # fmt: skip
def test_joint_sequences(opened, qkv, shape, axis, rows, split):
    mesh = opened(*shape)
    main, joint = qkv(ROWS * mesh.shape[axis]), qkv(rows)
    tokens = main[0].shape[2] - 13
    together = [torch.cat([a[:, :, :tokens], b], 2) for a, b in zip(main, joint)]
    reference = F.scaled_dot_product_attention(*together)
    out, joint_out = attend(mesh, *main, *joint, axis=axis, split=split, logical_n=tokens)
    assert error(get(out, mesh, axis)[:, :, :tokens], reference[:, :, :tokens]) < 2e-2
    for chip in [None] if split else range(mesh.shape[axis]):
        assert error(get(joint_out, mesh, axis, chip), reference[:, :, tokens:]) < 2e-2


def test_chips_begin_with_their_own_keys(opened, qkv):
    """So that what they have alike comes out a little different on each."""
    mesh = opened(2, 4)
    main, joint = qkv(4 * ROWS), qkv(32)
    _, joint_out = attend(mesh, *main, *joint)
    first, second = (get(joint_out, mesh, 1, chip) for chip in (0, 1))
    assert 0 < error(first, second) < 1.5e-2


@pytest.mark.parametrize("size, place, ring, expected", [
    (4, 0, False, [0, 1, 2, 3]), (4, 1, False, [1, 2, 0, 3]), (4, 3, False, [3, 2, 1, 0]),
    (4, 0, True, [0, 1, 3, 2]), (4, 3, True, [3, 0, 2, 1]), (8, 2, True, [2, 3, 1, 4, 0, 5, 7, 6]),
    (5, 2, True, [2, 3, 1, 4, 0]), (2, 0, True, [0, 1]), (2, 1, False, [1, 0]),
])  # fmt: skip
def test_order_of_the_steps(size, place, ring, expected):
    assert visits(place, size, ring) == expected


def test_around_a_ring(opened, qkv):
    mesh = opened(1, 8, fabric=RING)
    q, k, v = qkv(8 * ROWS)
    around, _ = attend(mesh, q, k, v, topology=ttnn.Topology.Ring)
    along, _ = attend(mesh, q, k, v)
    assert error(get(around, mesh, 1), F.scaled_dot_product_attention(q, k, v)) < 2e-2
    assert 0 < error(get(around, mesh, 1), get(along, mesh, 1)) < 2e-2


def test_hifi2_makes_results_smaller_and_a_bf16_destination_is_fast_and_coarse(opened, qkv):
    mesh = opened(2, 4)
    q, k, v = qkv(4 * ROWS)
    reference = F.scaled_dot_product_attention(q, k, v)
    out = get(attend(mesh, q, k, v, compute_kernel_config=config("HiFi2"))[0], mesh, 1)
    assert -1.2e-2 < float((out * reference).mean() / reference.square().mean()) - 1 < -4e-3
    out = get(attend(mesh, q, k, v, compute_kernel_config=config(fp32=False))[0], mesh, 1)
    assert 1.2e-2 < error(out, reference) < 4e-2


def test_samples_and_scale(opened, randn):
    mesh = opened(1, 8)
    q, k, v = (randn(2, 1, 8 * 32, 32) for _ in range(3))
    out, _ = attend(mesh, q, k, v, scale=0.5)
    assert error(get(out, mesh, 1), F.scaled_dot_product_attention(q, k, v, scale=0.5)) < 2e-2


def test_what_a_mesh_lacks(opened, qkv):
    mesh = opened(2, 4, fabric=RING)
    q, k, v = qkv(4 * ROWS)
    with pytest.raises(RuntimeError, match="is no ring"):
        attend(mesh, q, k, v, topology=ttnn.Topology.Ring)
    along_two = [x[:, :, : 2 * ROWS] for x in (q, k, v)]
    attend(mesh, *along_two, axis=0, topology=ttnn.Topology.Ring)
    ttnn.close_mesh_device(mesh)
    line = opened(1, 8)
    with pytest.raises(RuntimeError, match="is no ring"):
        attend(line, *qkv(8 * ROWS), topology=ttnn.Topology.Ring)
    with pytest.raises(RuntimeError, match="the mesh device must be"):
        attend(line, *qkv(8 * ROWS), mesh_device=mesh)


@pytest.mark.parametrize("spoil, words", [(ttnn.from_device, "must be on device"), (ttnn.deallocate, "deallocated")])
def test_operands_that_are_not_there(opened, qkv, spoil, words):
    """TT-NN dies of them."""
    mesh = opened(2, 4)
    buffer = ttnn.zeros((1, 2, 4 * ROWS, WIDTH), layout=ttnn.TILE_LAYOUT, device=mesh)
    with pytest.raises(RuntimeError, match=words):
        attend(mesh, *qkv(4 * ROWS), persistent_output_buffer_k=spoil(buffer) or buffer)
