"""Operations against torch in fp32, at the precision their formats and configurations allow."""

import importlib
import math

import numba
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tt_flux_kontext.emulator as ttnn
from tt_flux_kontext.emulator import gemm, grouped_sums, vector_unit

TILE, RM = ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT
BF16_ERROR = 3e-3
"""Relative RMS error of one rounding to bf16 (1.7e-3), with room for what precedes it."""
PRODUCT_ERROR = 6e-4
"""The same of the terms' rounding in a product (3e-4), with room for few terms."""


@pytest.fixture(scope="module")
def device():
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1), l1_small_size=32768)
    yield device
    ttnn.close_mesh_device(device)


@pytest.fixture(scope="module")
def put(device):
    """A torch tensor as device tiles, bf16 unless said otherwise."""

    def put(x, dtype=ttnn.bfloat16, layout=TILE):
        return ttnn.from_torch(x, dtype=dtype, layout=layout, device=device)

    return put


@pytest.fixture
def randn():
    """Random values that are exact in bf16, in fp32."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).bfloat16().float()


def config(fidelity="HiFi4", fp32=True, l1=False):
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity[fidelity], fp32_dest_acc_en=fp32, packer_l1_acc=l1
    )


def error(tensor, reference):
    """Relative RMS error; the shapes must agree."""
    values = ttnn.to_torch(tensor, torch.float32)
    assert values.shape == reference.shape
    return float((values - reference).norm() / reference.norm())


# ---- matrix products


@pytest.mark.parametrize(
    "fidelity, low, high", [("HiFi4", 1e-3, 2e-3), ("HiFi3", 1e-3, 2e-3), ("HiFi2", 3e-3, 6e-3), ("LoFi", 2e-2, 4e-2)]
)
def test_fidelity_costs_what_it_should(put, randn, fidelity, low, high):
    x, w = randn(1, 1, 64, 1024), randn(1024, 96)
    out = ttnn.linear(put(x), put(w), compute_kernel_config=config(fidelity))
    assert low < error(out, x @ w) < high


@pytest.mark.parametrize("l1, low, high", [(False, 1.2e-2, 4e-2), (True, 3e-3, 1.5e-2)])
def test_bf16_destination_dominates_the_error(put, randn, l1, low, high):
    x, w = randn(32, 1024), randn(1024, 32)
    assert low < error(ttnn.matmul(put(x), put(w), compute_kernel_config=config(fp32=False, l1=l1)), x @ w) < high


def test_default_config_is_the_librarys(put, randn):
    x, w = randn(64, 256), randn(256, 64)
    default = ttnn.to_torch(ttnn.matmul(put(x), put(w)))
    assert torch.equal(
        default, ttnn.to_torch(ttnn.matmul(put(x), put(w), compute_kernel_config=config("HiFi2", False, True)))
    )
    exact = ttnn.matmul(put(x, ttnn.float32), put(w, ttnn.float32))
    assert exact.dtype is ttnn.float32 and error(exact, x @ w) < PRODUCT_ERROR


def test_fp32_operands_are_cut_to_tf32(put):
    x = torch.full((32, 32), 1 + 2**-10 + 2**-11)
    out = ttnn.matmul(put(x, ttnn.float32), put(torch.eye(32), ttnn.float32), compute_kernel_config=config())
    assert torch.equal(ttnn.to_torch(out), torch.full((32, 32), 1 + 2**-10))


@settings(deadline=None, max_examples=25)
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    batched_weight=st.booleans(),
    transposed=st.booleans(),
)
def test_products_of_any_shape(put, batch, sizes, batched_weight, transposed):
    m, k, n = sizes
    x = torch.randn(*batch, m, k).bfloat16().float()
    w = torch.randn(*(batch if batched_weight else ()), k, n).bfloat16().float()
    operand = put(w.mT.contiguous() if transposed else w)
    out = ttnn.matmul(put(x), operand, transpose_b=transposed, dtype=ttnn.float32, compute_kernel_config=config())
    # Half a step of the grid for each term but a group's largest; the grid is 2^-10 of no more than that one.
    slack = 2.0**-10 * (x.abs() @ w.abs()) + 1e-6
    assert torch.all((ttnn.to_torch(out) - x @ w).abs() <= slack * 4)


def rounded(values, grid):
    """float64 values on a grid, ties away from zero."""
    return (values.abs() / grid + 0.5).floor() * grid * values.sign()


def high(values, bits):
    """fp32 values cut to their first significant bits, in float64."""
    mantissa, exponent = values.double().frexp()
    return torch.ldexp((mantissa * 2**bits).trunc(), exponent - bits)


def product_by_the_book(x, w, phases):
    """Each phase's terms on a grid 10 bits below the largest sum of exponents among 8, and exact sums of those."""
    exponents = 2.0 ** (x.frexp().exponent[:, :, None] + w.frexp().exponent - 2).double()
    splits = [(high(x, 7), high(w, 5)), (high(x, 7), w - high(w, 5)), (x - high(x, 7), high(w, 5))][:phases]
    total = 0
    for start in range(0, x.shape[1], 8):
        group = slice(start, start + 8)
        for finer, (left, right) in zip((0, 5, 7), splits):
            grid = exponents[:, group].amax(1, keepdim=True) * 2.0 ** (-10 - finer)
            total = total + rounded(left[:, group, None] * right[None, group], grid).sum(1)
    return total


@pytest.mark.parametrize("fidelity, phases", [("LoFi", 1), ("HiFi2", 2), ("HiFi3", 3)])
@pytest.mark.parametrize("rows, columns", [(40, 24), (24, 600)])
def test_terms_are_rounded_in_groups(put, randn, monkeypatch, fidelity, phases, rows, columns):
    monkeypatch.setattr(gemm, "COLUMNS", 590)
    x, w = randn(rows, 92) * torch.logspace(-12, 12, rows, 2)[:, None], randn(92, columns)
    options = {"dtype": ttnn.float32, "compute_kernel_config": config(fidelity)}
    out = ttnn.to_torch(ttnn.matmul(put(x), put(w), **options)).double()
    expected = product_by_the_book(x.bfloat16().float(), w, phases)
    assert torch.all((out - expected).norm(dim=1) < 3e-5 * expected.norm(dim=1))
    monkeypatch.setattr(gemm, "GROUPED_TERMS", 0)
    plain = ttnn.to_torch(ttnn.matmul(put(x), put(w), **options)).double()
    assert 1e-4 < (plain - expected).norm() / expected.norm() < PRODUCT_ERROR


def test_terms_are_rounded_where_no_folder_can_be_written(monkeypatch, randn):
    """numba then has no place for what it compiled."""
    left, right, compiled = randn(1, 8, 32), randn(1, 32, 40), numba.njit
    expected = grouped_sums.grouped_sums(left, right)

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function")
        return compiled(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert torch.equal(importlib.reload(grouped_sums).grouped_sums(left, right), expected)


def test_bias_is_added_by_the_matrix_unit(put, randn):
    x, w, b = randn(32, 64), torch.eye(64), randn(1, 64) / 3
    options = {"dtype": ttnn.float32, "compute_kernel_config": config()}
    out = ttnn.linear(put(x), put(w), bias=put(b, ttnn.float32), **options)
    b = high(b, 11)
    grid = 2.0 ** (torch.maximum(x.frexp().exponent, b.frexp().exponent) - 11).double()
    assert torch.equal(ttnn.to_torch(out).double(), rounded(x.double(), grid) + rounded(b, grid))


def test_a_product_without_bias_is_copied_by_minimal_matmul(put):
    x, w = torch.full((32, 32), 1 + 2.0**-7), torch.full((32, 32), 1 + 2.0**-7)
    w[1:] = 0
    options = {"dtype": ttnn.float32, "compute_kernel_config": config()}
    assert ttnn.to_torch(ttnn.matmul(put(x), put(w), **options))[0, 0] == 1 + 2.0**-6 + 2.0**-14
    assert ttnn.to_torch(ttnn.experimental.minimal_matmul(put(x), put(w), **options))[0, 0] == 1 + 2.0**-6


def test_products_larger_than_a_tile_of_output(put, randn, monkeypatch):
    monkeypatch.setattr(gemm, "ROWS", 48)
    monkeypatch.setattr(gemm, "COLUMNS", 32)
    x, w, b = randn(2, 1, 50, 64), randn(64, 70), randn(1, 70)
    out = ttnn.linear(put(x), put(w), bias=put(b), activation="silu", compute_kernel_config=config())
    assert error(out, F.silu(x @ w + b)) < BF16_ERROR


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "relu"])
def test_fused_activations(put, randn, name):
    reference = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}.get(name) or getattr(F, name)
    x, w = randn(32, 64), randn(64, 64) / 8
    op = ttnn.UnaryWithParam(ttnn.UnaryOpType[name.upper()], *[0.0] * (name == "gelu"))
    for out in (
        ttnn.linear(put(x), put(w), activation=name, compute_kernel_config=config()),
        ttnn.experimental.minimal_matmul(put(x), put(w), fused_activation=op),
    ):
        assert error(out, reference(x @ w.bfloat16().float())) < BF16_ERROR


@pytest.mark.parametrize("params", [(), (1.0,)])
def test_gelu_without_its_parameter_is_by_the_table(put, params):
    x = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 4.0, -4.0, -0.75]])
    lines = [0.1928 * 0.25, 0.4939 * 0.75 - 0.1604, 0.6188 * 1.25 - 0.2796, 0.6099 * 1.75 - 0.2635]
    lines += [0.5402 * 2.5 - 0.1194, 2.0, 2.0, lines[1]]
    op = ttnn.UnaryWithParam(ttnn.UnaryOpType.GELU, *params)
    options = {"dtype": ttnn.float32, "compute_kernel_config": config()}
    out = ttnn.experimental.minimal_matmul(put(x), put(torch.eye(8)), fused_activation=op, **options)
    assert torch.allclose(ttnn.to_torch(out), torch.tensor([lines]) + x / 2, atol=5e-4)
    named = ttnn.linear(put(x), put(torch.eye(8)), activation="gelu_approx", **options)
    assert torch.equal(ttnn.to_torch(named), ttnn.to_torch(out))


@pytest.mark.parametrize("gate_rows", [1, 33])
def test_gated_residual(put, randn, gate_rows):
    x, w, b, residual, gate = (
        randn(1, 1, 33, 64),
        randn(64, 96),
        randn(1, 96),
        randn(1, 1, 33, 96),
        randn(1, 1, gate_rows, 96),
    )
    out = ttnn.experimental.dit_minimal_matmul_addcmul_fused(put(x), put(w), 0.5, put(residual), put(gate), put(b))
    assert error(out, residual + 0.5 * (x @ w + b) * gate) < BF16_ERROR
    assert out.padded_shape == [1, 1, 64, 96]


def test_weights_in_block_floats(put, randn):
    x, w = randn(64, 256), randn(256, 64)
    for dtype, limit in ((ttnn.bfloat8_b, 1e-2), (ttnn.bfloat4_b, 1.5e-1)):
        out = ttnn.linear(put(x), put(w, dtype), compute_kernel_config=config())
        assert out.dtype is ttnn.bfloat16 and BF16_ERROR < error(out, x @ w) < limit
    assert error(ttnn.linear(put(x), put(w), dtype=ttnn.bfloat8_b, compute_kernel_config=config()), x @ w) < 1.2e-2


# ---- elementwise


@settings(deadline=None, max_examples=30)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=4), data=st.data())
def test_binary_operations_broadcast(put, shape, data):
    other = [data.draw(st.sampled_from([1, size])) for size in shape][data.draw(st.integers(0, len(shape) - 1)) :]
    a, b = torch.randn(shape).bfloat16(), torch.randn(other).bfloat16()
    for name in ("add", "subtract", "multiply"):
        result = ttnn.to_torch(getattr(ttnn, name)(put(a), put(b)))
        reference = getattr(torch, name)(a.float(), b.float())
        assert result.shape == reference.shape
        # Half a unit of the last place, and half the matrix unit's grid for sums that cancel.
        slack = (a.float().abs() + b.float().abs()) * 2.0**-9
        assert torch.all((result.float() - reference).abs() <= reference.abs() * 2.0**-8 + slack)


def test_sums_by_hand(put):
    a = torch.tensor([1.0, 256.0, 1.0, float("-inf"), 0.0])
    b = torch.tensor([2**-8, 1.0, -(2**-12), 5.0, 0.0])
    # A tie goes away from zero; what is below the grid of the larger operand is lost.
    assert ttnn.to_torch(ttnn.add(put(a), put(b))).tolist() == [1 + 2**-7, 258.0, 1.0, float("-inf"), 0.0]


def test_scalars_activations_and_dtypes(put, randn):
    a, b = randn(33, 64), randn(33, 64)
    silu = ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)
    assert error(ttnn.multiply(put(a), put(b), input_tensor_a_activations=[silu]), F.silu(a) * b) < BF16_ERROR
    assert error(ttnn.mul(put(a), put(b), input_tensor_b_activations=[silu]), a * F.silu(b)) < BF16_ERROR
    assert error(ttnn.add(put(a), 0.5, activations=[silu]), F.silu(a + 0.5)) < 2 * BF16_ERROR
    both = ttnn.add(put(a, ttnn.float32), put(b, ttnn.float32))
    assert both.dtype is ttnn.float32 and torch.equal(ttnn.to_torch(both), a + b)
    assert ttnn.multiply(put(a), put(b), dtype=ttnn.bfloat8_b).dtype is ttnn.bfloat8_b
    assert error(ttnn.addcmul(put(a), put(b), put(a[:1]), value=-0.5), a - 0.5 * b * a[:1]) < BF16_ERROR


def test_mixed_operands_meet_in_the_matrix_unit(put):
    a, b = torch.tensor([1 + 2**-10 + 2**-11, 2**-11]), torch.tensor([2.0**-11, 1.0])
    mixed = ttnn.add(put(a, ttnn.float32), put(b))
    assert mixed.dtype is ttnn.float32 and ttnn.to_torch(mixed).tolist() == [1 + 2**-9, 1 + 2**-10]


def test_products_and_casts_to_bf16_round_ties_to_even(put):
    a = torch.tensor([1 + 2**-6, 1 + 2**-7, -1 - 2**-6])
    product = ttnn.multiply(put(a), put(torch.tensor([1.25, 1.5, 1.25])))
    assert ttnn.to_torch(product).tolist() == [1.25 + 2**-6, 1.5 + 2**-6, -1.25 - 2**-6]
    cast = ttnn.typecast(put(torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]), ttnn.float32), ttnn.bfloat16)
    assert ttnn.to_torch(cast).tolist() == [1.0, 1 + 2**-6]


@settings(deadline=None)
@given(st.floats(-80, 80, width=32, allow_subnormal=False))
def test_the_vector_unit_for_a_bf16_destination(x):
    x = torch.tensor([x])
    assert abs(vector_unit.exp_21f(x.clone()) / x.double().exp() - 1) < 1.8e-3
    assert abs(vector_unit.sigmoid_to_bf16(x.clone()) / x.double().sigmoid() - 1) < 2e-3
    for steps, limit in ((1, 2e-4), (2, 3e-7)):
        assert x == 0 or abs(vector_unit.reciprocal(x.clone(), steps) * x.double() - 1) < limit


@pytest.mark.parametrize("name", ["silu", "sigmoid", "tanh", "relu", "gelu"])
@pytest.mark.parametrize("layout", [TILE, RM])
def test_unary_operations(put, randn, name, layout):
    x = randn(2, 33, 40)
    out = getattr(ttnn, name)(put(x, layout=layout))
    assert out.layout is layout and error(out, getattr(F, name)(x)) < BF16_ERROR


def test_gelu_variants(put, randn):
    x = randn(32, 32)
    assert error(ttnn.gelu(put(x, ttnn.float32), variant=ttnn.GeluVariant.Tanh), F.gelu(x, approximate="tanh")) < 1e-6
    for fast in ({"variant": ttnn.GeluVariant.FastLut}, {"fast_and_approximate_mode": True}):
        assert 5e-3 < error(ttnn.gelu(put(x, ttnn.float32), **fast), F.gelu(x)) < 3e-2


# ---- movement


def test_movement(put, randn):
    x = randn(2, 3, 64, 96)
    t = put(x)
    same = lambda tensor, reference: torch.equal(ttnn.to_torch(tensor).float(), reference)  # noqa: E731
    assert same(ttnn.slice(t, [0, 1, -40, 5], [2, 3, 60, -1]), x[:, 1:3, 24:60, 5:-1])
    assert same(ttnn.slice(t, [0, 0, 0, 0], [2, 3, 64, 96], [1, 2, 3, 1]), x[:, ::2, ::3])
    assert same(ttnn.concat([t, t], dim=-2), torch.cat([x, x], -2))
    assert same(ttnn.permute(t, (0, -1, 1, 2)), x.permute(0, 3, 1, 2))
    assert same(ttnn.pad(t, padding=[(0, 1), (0, 2)], value=3.0), F.pad(x, (0, 2, 0, 1), value=3.0))
    assert same(ttnn.pad(put(x, layout=RM), [(1, 1), (0, 0), (2, 0)], 0.0), F.pad(x, (2, 0, 0, 0, 1, 1)))
    up = ttnn.upsample(t, (2, 3))
    assert up.layout is RM and same(up, x.repeat_interleave(2, 1).repeat_interleave(3, 2))


def test_block_floats_cut_inside_a_tile_become_bf16(put, randn):
    t = put(randn(66, 64), ttnn.bfloat8_b)
    assert ttnn.slice(t, [32, 0], [66, 64]).dtype is ttnn.bfloat8_b
    assert ttnn.slice(t, [3, 0], [66, 64]).dtype is ttnn.bfloat16
    assert ttnn.concat([t, t], dim=0).dtype is ttnn.bfloat16
    assert ttnn.permute(t, (1, 0)).dtype is ttnn.bfloat8_b


def test_embedding(put, randn):
    table, ids = randn(40, 64), torch.randint(40, (2, 33))
    found = ttnn.embedding(put(ids, ttnn.uint32, RM), put(table, layout=RM), layout=TILE)
    assert found.layout is TILE and torch.equal(ttnn.to_torch(found).float(), table[ids])


# ---- heads


def test_heads_are_split_and_joined(put, randn):
    x = randn(2, 1, 33, 6 * 32)
    q, k, v = ttnn.experimental.nlp_create_qkv_heads(put(x), num_heads=2, num_kv_heads=2)
    parts = [part.view(2, 33, 2, 32).transpose(1, 2) for part in x.squeeze(1).split(64, -1)]
    for tensor, part in zip((q, k, v), (parts[0], parts[1].mT, parts[2])):
        assert torch.equal(ttnn.to_torch(tensor).float(), part)
    assert torch.equal(ttnn.to_torch(ttnn.experimental.nlp_concat_heads(v)).float(), x[..., 128:])


def test_rotary_embedding(put, randn):
    x, angle, turn = randn(2, 3, 33, 64), randn(1, 1, 40, 64), torch.zeros(1, 1, 32, 32)
    even = torch.arange(0, 32, 2)
    turn[..., even + 1, even], turn[..., even, even + 1] = -1, 1
    out = ttnn.experimental.rotary_embedding_llama(put(x), put(angle.cos()), put(angle.sin()), put(turn))
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    assert error(out, x * angle.cos()[..., :33, :] + turned * angle.sin()[..., :33, :]) < 2 * BF16_ERROR


# ---- convolution


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("fp32", [True, False])
@pytest.mark.parametrize(
    "kernel, stride, padding", [((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (0, 1, 0, 1)), ((1, 1), (1, 1), (0, 0))]
)
def test_convolution(device, put, randn, monkeypatch, kernel, stride, padding, fp32, grouped):
    monkeypatch.setattr(gemm, "GROUPED_TERMS", 1 << 24 if grouped else 0)
    monkeypatch.setattr("tt_flux_kontext.emulator.convolution.OUTPUT_ELEMENTS", 3 * 12 * 40)  # bands of few rows
    x, w, b = randn(2, 10, 12, 32), randn(40, 32, *kernel) / 16, randn(1, 1, 1, 40)
    arguments = {
        "device": device, "in_channels": 32, "out_channels": 40, "batch_size": 2, "input_height": 10, "input_width": 12,
        "kernel_size": kernel, "stride": stride, "padding": padding, "compute_config": config(fp32=fp32),
        "return_output_dim": True, "return_weights_and_bias": True,
    }  # fmt: skip
    host = [ttnn.from_torch(values, dtype=ttnn.bfloat16) for values in (w, b)]
    out, size, prepared = ttnn.conv2d(
        input_tensor=put(x, layout=RM), weight_tensor=host[0], bias_tensor=host[1], **arguments
    )
    edges = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
    padded = F.pad(x.permute(0, 3, 1, 2), (*edges[2:], *edges[:2]))
    reference = F.conv2d(padded, w, b.flatten(), stride=stride)
    assert size == reference.shape[2:]
    assert error(out, reference.permute(0, 2, 3, 1).reshape(1, 1, -1, 40)) < (BF16_ERROR if fp32 else 4e-2)
    assert prepared[0].shape == [1, 1, 32 * math.prod(kernel), 40] and prepared[1].shape == [1, 1, 1, 40]
    flat = put(x.view(1, 1, -1, 32))
    again, _, reused = ttnn.conv2d(input_tensor=flat, weight_tensor=prepared[0], bias_tensor=prepared[1], **arguments)
    assert reused == prepared and torch.equal(ttnn.to_torch(again), ttnn.to_torch(out))
