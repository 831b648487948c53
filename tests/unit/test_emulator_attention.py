"""Attention against torch in fp32: the errors of TT-NN's kernels, which programs and configurations choose."""

import math
import struct

import pytest
import torch
import torch.nn.functional as F

import tt_flux_kontext.emulator as ttnn
from tt_flux_kontext.emulator.flash_attention import Method, _column_sums, _exponential_, _subtract_
from tt_flux_kontext.emulator.formats import aligned_sum, keep_significant_bits


@pytest.fixture(scope="module")
def device():
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1))
    yield device
    ttnn.close_mesh_device(device)


@pytest.fixture(scope="module")
def put(device):
    return lambda x: ttnn.from_torch(x, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=device)


@pytest.fixture
def randn():
    """Random values that are exact in bf16, in fp32."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).bfloat16().float()


def config(fidelity="HiFi4", fp32=True):
    return ttnn.WormholeComputeKernelConfig(math_fidelity=ttnn.MathFidelity[fidelity], fp32_dest_acc_en=fp32)


def program(keys=512, fast=False):
    return ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=ttnn.CoreCoord(8, 8), q_chunk_size=128, k_chunk_size=keys, exp_approx_mode=fast
    )


PROGRAM, CONFIG = program(), config()


def attention(put, q, k, v, *, program=PROGRAM, config=CONFIG, is_causal=False, **other):
    out = ttnn.transformer.scaled_dot_product_attention(
        put(q), put(k), put(v), is_causal=is_causal, program_config=program, compute_kernel_config=config, **other
    )
    return ttnn.to_torch(out, torch.float32)


def joint_attention(put, *parts, keys=512):
    outs = ttnn.transformer.joint_scaled_dot_product_attention(
        *map(put, parts), joint_strategy="rear", program_config=program(keys), compute_kernel_config=config()
    )
    return torch.cat([ttnn.to_torch(out, torch.float32) for out in outs], 2)


def error(values, reference):
    """Relative RMS error; the shapes must agree."""
    assert values.shape == reference.shape
    return float((values - reference).norm() / reference.norm())


def gain(values, reference):
    return float((values * reference).mean() / reference.square().mean()) - 1


@pytest.mark.parametrize("queries, keys, causal", [(77, 77, True), (300, 40, False), (500, 500, True)])
def test_fp32_scores(put, randn, queries, keys, causal):
    q, k, v = randn(2, 4, queries, 32), randn(2, 2, keys, 32), randn(2, 2, keys, 32)
    reference = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert error(attention(put, q, k, v, is_causal=causal), reference) < 3.5e-3


def test_mask_and_scale(put, randn):
    q, mask = randn(1, 2, 40, 32), randn(1, 1, 40, 40)
    mask[..., 30:] = -math.inf
    out = attention(put, q, q, q, attn_mask=put(mask), scale=0.5)
    assert error(out, F.scaled_dot_product_attention(q, q, q, attn_mask=mask, scale=0.5)) < 3.5e-3


@pytest.mark.parametrize("keys, low, high", [(512, 4e-3, 7e-3), (32, 5e-3, 1.2e-2)])
def test_joint_attention_rounds_its_scores(put, randn, keys, low, high):
    q, k, v, jq, jk, jv = (randn(1, 2, length, 32) for length in (100, 100, 100, 40, 40, 40))
    reference = F.scaled_dot_product_attention(*(torch.cat(pair, 2) for pair in ((q, jq), (k, jk), (v, jv))))
    assert low < error(joint_attention(put, q, k, v, jq, jk, jv, keys=keys), reference) < high


def test_small_chunks_of_keys_round_more_often(put, randn):
    q, k, v = (randn(1, 1, 256, 32) for _ in range(3))
    reference = F.scaled_dot_product_attention(q, k, v)
    errors = [error(attention(put, q, k, v, program=program(keys)), reference) for keys in (32, 128, 512)]
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


@pytest.mark.parametrize("chosen", [None, program(fast=True), program(fast=None)])
def test_the_exponential_is_the_fast_one_unless_refused(put, randn, chosen):
    q, k, v = (randn(1, 2, 96, 64) for _ in range(3))
    assert 1.2e-2 < error(attention(put, q, k, v, program=chosen), F.scaled_dot_product_attention(q, k, v)) < 4e-2


def test_a_bf16_destination_has_the_fast_exponential_only(put, randn):
    q, k, v = (randn(1, 2, 96, 64) for _ in range(3))
    out = attention(put, q, k, v, config=config(fp32=False))
    assert 1.2e-2 < error(out, F.scaled_dot_product_attention(q, k, v)) < 4e-2


def test_hifi2_makes_results_smaller(put, randn):
    q, k, v = (randn(1, 2, 160, 128) for _ in range(3))
    reference = F.scaled_dot_product_attention(q, k, v)
    for fidelity, low, high in (("HiFi4", -1e-3, 1e-3), ("HiFi3", -1e-3, 1e-3), ("HiFi2", -1.2e-2, -4e-3)):
        assert low < gain(attention(put, q, k, v, config=config(fidelity)), reference) < high


def test_heads_batches_and_rows_are_independent(put, randn):
    q, k, v = (randn(2, 3, 200, 32) for _ in range(3))
    whole = attention(put, q, k, v)
    alone = attention(put, q[1:, 2:, 70:75], k[1:, 2:], v[1:, 2:])
    # Products of other shapes may add up in another order.
    assert error(alone, whole[1:, 2:, 70:75]) < 2e-3


def test_the_maximum_is_subtracted_as_the_matrix_unit_does(randn):
    scores = keep_significant_bits(randn(2, 300, 77) * torch.logspace(-6, 6, 300, 2)[:, None] * 1.01, 11)
    maximum = keep_significant_bits(scores.amax(-1, keepdim=True), 8)
    expected = aligned_sum(scores, -maximum)
    # A maximum far smaller than a score would be rounded too, which is left out.
    near = scores.abs() < 8 * maximum.abs()
    assert torch.equal(_subtract_(scores.clone(), maximum)[near], expected[near])


@pytest.mark.parametrize("keys", [32, 100, 512])
def test_narrow_sums_are_bf16_at_every_tile(randn, keys):
    probabilities = randn(1, 3, keys).abs()
    expected = torch.zeros(1, 3, 32)
    for key in range(keys):
        column = expected[..., key % 32]
        column.copy_((column + probabilities[..., key]).bfloat16().float())
    assert torch.equal(_column_sums(probabilities, Method(512, 1.0, False, True, config())), expected)


def test_equal_keys_give_the_mean_of_values(put, randn):
    q, v = torch.zeros(1, 1, 40, 64), randn(1, 1, 300, 64) + 1
    mean = v.mean(2, keepdim=True).expand(1, 1, 40, 64)
    # 1 / 300 is rounded on the way, in TF32 or bf16.
    assert error(attention(put, q, randn(1, 1, 300, 64), v), mean) < 4e-3
    both = torch.cat([v[:, :, :32], v[:, :, :40]], 2).mean(2, keepdim=True).expand(1, 1, 72, 64)
    parts = [x[:, :, :length] for length in (32, 40) for x in (q, v, v)]
    assert error(joint_attention(put, *parts), both) < 8e-3


def test_the_fast_exponential_is_schraudolphs(randn):
    scale, scores = 0.25, -randn(1, 1, 1000).abs() * 100
    method = Method(32, scale, True, False, config())
    expected = []
    for x in scores.flatten().tolist():
        bits = max(0, round(x * scale * 256 / math.log(2) + 32500.818359375))
        expected.append(struct.unpack("f", struct.pack("I", bits << 15))[0] if bits >= 256 else 0.0)
    computed = _exponential_(scores.clone(), method).flatten()
    # fp32 against Python's float64: a value halfway between two steps may take the other.
    torch.testing.assert_close(computed, torch.tensor(expected), rtol=2.0**-7, atol=0)
    assert (computed == torch.tensor(expected)).float().mean() > 0.99
