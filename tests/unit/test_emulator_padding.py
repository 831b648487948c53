"""Padding of tiles: rows that change between padding and values, and what convolutions leave in it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tt_flux_kontext.emulator as ttnn

TILE = ttnn.TILE_LAYOUT


@pytest.fixture(scope="module")
def device():
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1), l1_small_size=32768)
    yield device
    ttnn.close_mesh_device(device)


def put(device, values: torch.Tensor):
    return ttnn.from_torch(values, dtype=ttnn.bfloat16, layout=TILE, device=device)


def with_rows(x, rows: int):
    *outer, _, width = x.shape
    return ttnn.reshape(x, ttnn.Shape([*outer, rows, width]), x.padded_shape)


def allocated(device) -> int:
    return ttnn.get_memory_view(device, ttnn.BufferType.DRAM).total_bytes_allocated_per_bank


@settings(deadline=None, max_examples=30)
@given(heads=st.integers(1, 3), rows=st.integers(1, 100), width=st.sampled_from([32, 64]))
def test_rows_of_whole_tiles_and_back(device, heads, rows, width):
    x = put(device, torch.randn(1, heads, rows, width))
    before = allocated(device)
    whole = with_rows(x, x.padded_shape[2])
    back = with_rows(whole, rows)
    assert allocated(device) == before
    assert whole.shape == x.padded_shape and back.shape == x.shape
    values = ttnn.to_torch(whole)
    assert torch.equal(values[:, :, :rows], ttnn.to_torch(x)) and values[:, :, rows:].isnan().all()
    assert torch.equal(ttnn.to_torch(back), ttnn.to_torch(x))


def test_what_became_of_padding_is_no_value_again(device):
    x = put(device, torch.randn(1, 1, 40, 32))
    doubled = with_rows(ttnn.multiply(with_rows(x, 64), 2.0), 40)
    assert torch.equal(ttnn.to_torch(doubled), 2 * ttnn.to_torch(x))


@pytest.mark.parametrize("shape, padded", [([1, 1, 65, 32], [1, 1, 96, 32]), ([1, 1, 40, 64], [1, 1, 64, 64])])
def test_other_tiles_are_refused(device, shape, padded):
    x = put(device, torch.randn(1, 1, 40, 32))
    with pytest.raises(RuntimeError, match="in the same tiles"):
        ttnn.reshape(x, ttnn.Shape(shape), ttnn.Shape(padded))


def convolved(device, height: int, width: int):
    x = put(device, torch.randn(1, 1, height * width, 32))
    weight = ttnn.from_torch(torch.randn(32, 32, 3, 3) / 17, dtype=ttnn.bfloat16)
    return ttnn.conv2d(
        input_tensor=x,
        weight_tensor=weight,
        device=device,
        in_channels=32,
        out_channels=32,
        batch_size=1,
        input_height=height,
        input_width=width,
        kernel_size=(3, 3),
        padding=(1, 1),
    )


def attend(query, key, value):
    return ttnn.transformer.scaled_dot_product_attention(query, key, value, is_causal=False)


def attend_jointly(query, key, value):
    program = ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=ttnn.CoreCoord(8, 8), q_chunk_size=32, k_chunk_size=32
    )
    known = put(query.device(), torch.randn(1, 1, 32, 32))
    tensors = (known, known, known, query, key, value)
    return ttnn.transformer.joint_scaled_dot_product_attention(*tensors, joint_strategy="rear", program_config=program)


@pytest.mark.parametrize("attention", [attend, attend_jointly])
def test_attention_refuses_what_convolutions_leave(device, attention):
    known, unknown = put(device, torch.randn(1, 1, 24, 32)), convolved(device, 4, 6)
    assert unknown.unknown_padding and not known.unknown_padding
    attention(unknown, known, known)  # rows of queries don't meet
    for operands in ((known, unknown, known), (known, known, unknown)):
        with pytest.raises(RuntimeError, match="TT_FATAL: .*fill_implicit_tile_padding"):
            attention(*operands)
    filled = ttnn.fill_implicit_tile_padding(unknown, 0.0)
    assert torch.equal(ttnn.to_torch(filled), ttnn.to_torch(unknown))
    attention(known, filled, filled)


@pytest.mark.parametrize(
    "operation",
    [
        ttnn.silu,
        lambda x: ttnn.typecast(x, ttnn.float32),
        lambda x: ttnn.add(put(x.device(), torch.zeros(x.shape)), x),
        lambda x: ttnn.addcmul(put(x.device(), torch.zeros(x.shape)), x, x),
        lambda x: ttnn.group_norm(x, num_groups=4, inplace=False),
        lambda x: ttnn.linear(x, put(x.device(), torch.eye(32))),
        lambda x: ttnn.experimental.minimal_matmul(x, put(x.device(), torch.eye(32))),
        lambda x: ttnn.experimental.nlp_create_qkv_heads(x, num_heads=1, num_kv_heads=0)[0],
        lambda x: ttnn.reshape(x, (1, *x.shape[1:])),
    ],
)
def test_operations_pass_it_on(device, operation):
    assert operation(convolved(device, 4, 6)).unknown_padding


def test_where_there_is_no_padding_nothing_is_unknown(device):
    whole = convolved(device, 4, 8)
    assert not whole.unknown_padding
    assert ttnn.fill_implicit_tile_padding(whole, 0.0) is whole
    row_major = ttnn.to_layout(convolved(device, 4, 6), ttnn.ROW_MAJOR_LAYOUT)
    assert not row_major.unknown_padding and not ttnn.to_layout(row_major, TILE).unknown_padding
