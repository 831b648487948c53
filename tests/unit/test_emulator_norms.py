"""Norms and softmax: against torch in fp32, and by the rules of the matrix unit that they go through."""

import pytest
import torch
import torch.nn.functional as F

import tt_flux_kontext.emulator as ttnn
from tt_flux_kontext.emulator import matrix_unit

BF16_ERROR = 3e-3
"""Relative RMS error of one rounding to bf16 (1.7e-3), with room for the steps before it."""
TF32_ERROR = 2e-3
"""The same of the steps."""
HIFI4, HIFI3, HIFI2, LOFI = (ttnn.MathFidelity[name] for name in ("HiFi4", "HiFi3", "HiFi2", "LoFi"))


@pytest.fixture(scope="module")
def device():
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1))
    yield device
    ttnn.close_mesh_device(device)


@pytest.fixture(scope="module")
def put(device):
    def put(x, dtype=ttnn.bfloat16):
        return ttnn.from_torch(x, dtype=dtype, layout=ttnn.TILE_LAYOUT, device=device)

    return put


@pytest.fixture
def randn():
    """Random values that are exact in bf16, in fp32."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).bfloat16().float()


def config(fidelity=HIFI4, fp32=True):
    return ttnn.WormholeComputeKernelConfig(math_fidelity=fidelity, fp32_dest_acc_en=fp32)


def error(tensor, reference):
    """Relative RMS error; the shapes must agree."""
    values = ttnn.to_torch(tensor, torch.float32)
    assert values.shape == reference.shape
    return float((values - reference).norm() / reference.norm())


def gain(tensor, reference):
    """How much larger the values are than the reference's."""
    return float((ttnn.to_torch(tensor, torch.float32) * reference).sum() / reference.square().sum()) - 1


# ---- steps of the matrix unit


def test_products_by_hand():
    # Of TF32's 11 bits operand 0 gives the upper 5 and the next 5, operand 1 the upper 7 and the lower 4.
    a = torch.tensor([1 + 2.0**-4 + 2.0**-9 + 2.0**-10])
    b = torch.tensor([1 + 2.0**-6 + 2.0**-10 + 2.0**-11])
    high_a, low_a, high_b, low_b = 1 + 2**-4, 2**-9, 1 + 2**-6, 2**-10
    terms = {LOFI: high_a * high_b, HIFI2: low_a * high_b, HIFI3: high_a * low_b, HIFI4: low_a * low_b}
    expected = 0.0
    for fidelity, term in terms.items():
        expected += term
        assert matrix_unit.multiply(a, b, fidelity).item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_terms_of_a_sum_are_rounded_in_groups_of_eight(sign):
    tie = 2.0**-11  # half a step of the grid of a group whose largest term is 1
    terms = sign * torch.tensor([1.0, tie, tie, 0.75 * tie, -tie, 0, 0, 0] + [tie] * 8)
    expected = sign * (1 + 2 * tie + 8 * tie)
    assert matrix_unit.row_sums(terms, HIFI4).item() == expected
    one = torch.tensor(1.0)
    assert matrix_unit.column_sums(terms.view(16, 1), one, HIFI4).item() == expected
    assert matrix_unit.column_sums(terms.view(16, 1), one / 4, HIFI4).item() == expected / 4


@pytest.mark.parametrize("width", [1, 8, 77, 96])
def test_sums_of_any_width(randn, width):
    x = randn(3, 2, width).abs()
    assert torch.allclose(matrix_unit.row_sums(x, HIFI4).squeeze(-1), x.sum(-1), rtol=1e-3)


# ---- norms over rows, softmax


@pytest.mark.parametrize("fidelity", [HIFI4, HIFI3])
@pytest.mark.parametrize(
    "dtype, limit", [(ttnn.bfloat16, BF16_ERROR), (ttnn.float32, TF32_ERROR), (ttnn.bfloat8_b, 2e-2)]
)
def test_norms_and_softmax(put, randn, dtype, limit, fidelity):
    x, w, b, r = randn(2, 1, 33, 96), randn(96), randn(96), randn(2, 1, 33, 96)
    t, kernel = put(x, dtype), {"compute_kernel_config": config(fidelity)}
    affine = {"weight": put(w), "bias": put(b), "epsilon": 1e-5, **kernel}
    assert error(ttnn.layer_norm(t, **affine), F.layer_norm(x, (96,), w, b, 1e-5)) < limit
    assert error(ttnn.rms_norm(t, **affine), F.rms_norm(x, (96,), w, 1e-5) + b) < limit
    assert error(ttnn.layer_norm(t, residual_input_tensor=put(r, dtype), **kernel), F.layer_norm(x + r, (96,))) < limit
    assert error(ttnn.softmax(t, **kernel), x.softmax(-1)) < limit
    assert error(ttnn.softmax(t, dim=2, numeric_stable=False, **kernel), x.softmax(2)) < limit


@pytest.mark.parametrize("width", [96, 3072])
def test_a_row_of_equals_is_its_bias(put, randn, width):
    bias = randn(width)
    out = ttnn.layer_norm(put(torch.full((1, 1, 40, width), 3.0)), bias=put(bias))
    assert torch.equal(ttnn.to_torch(out).float(), bias.expand(1, 1, 40, width))


def test_layer_norm_subtracts_a_mean_of_eleven_bits(put, randn):
    x = randn(1, 1, 32, 192)
    assert error(ttnn.layer_norm(put(x, ttnn.float32)), F.layer_norm(x, (192,))) < TF32_ERROR
    shifted = (x + 66).bfloat16().float()
    # The mean is cut to a multiple of 2^-4: 0.03 too low, while the values are of 1.
    shift = ttnn.to_torch(ttnn.layer_norm(put(shifted, ttnn.float32))) - F.layer_norm(shifted, (192,))
    assert 0.02 < shift.mean() < 0.04


def test_truncated_products_make_norms_small(put, randn):
    x, w = randn(1, 1, 64, 96), randn(96)
    affine = {"weight": put(w), "epsilon": 1e-6}
    assert -2e-3 < gain(ttnn.rms_norm(put(x), **affine), F.rms_norm(x, (96,), w, 1e-6)) < -4e-4


def test_softmax_sees_scores_of_eleven_bits(put):
    exact, cut = torch.tensor([[8 + 2.0**-8, 8 + 2.0**-7, 0.0]]), torch.tensor([[8.0, 8 + 2.0**-7, 0.0]])
    assert torch.equal(*(ttnn.to_torch(ttnn.softmax(put(x, ttnn.float32))) for x in (exact, cut)))


@pytest.mark.parametrize("masked", [-1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_masked_scores_have_no_weight(put, randn, masked):
    x = randn(32, 64)
    x[:, 40:] = masked
    out = ttnn.softmax(put(x, ttnn.float32))
    assert error(out, x.softmax(-1)) < TF32_ERROR and not ttnn.to_torch(out)[:, 40:].any()


def test_low_fidelity_costs_softmax_the_lower_bits_of_its_sums(put, randn):
    x = randn(32, 64)
    for fidelity, low, high in ((HIFI4, 5e-4, 1.5e-3), (HIFI3, 5e-4, 1.5e-3), (HIFI2, 2e-3, 6e-3), (LOFI, 1e-2, 4e-2)):
        out = ttnn.softmax(put(x, ttnn.float32), compute_kernel_config=config(fidelity))
        assert low < error(out, x.softmax(-1)) < high


def test_kernels_with_other_configurations_are_refused(put, randn):
    x = put(randn(1, 1, 32, 64))
    narrow = {"compute_kernel_config": config(fp32=False)}
    for norm in (ttnn.layer_norm, ttnn.rms_norm, ttnn.softmax):
        with pytest.raises(RuntimeError, match="TT_FATAL: .*fp32_dest_acc_en"):
            norm(x, **narrow)
    with pytest.raises(RuntimeError, match="TT_FATAL: .*fp32_dest_acc_en"):
        ttnn.group_norm(x, num_groups=2, inplace=False, **narrow)
    with pytest.raises(RuntimeError, match="TT_FATAL: layer_norm: program configs are not emulated"):
        ttnn.layer_norm(x, program_config=object())


# ---- group norm


def group_norm(device, tensor, weight, bias, groups=32, **arguments):
    images, _, pixels, channels = tensor.shape
    grid = ttnn.determine_expected_group_norm_dram_grid_size(
        device=device, num_channels=channels, num_groups=groups, input_nhw=images * pixels, num_batches=images
    )
    (weight, bias), mask = ttnn.dram_group_norm_params_from_torch(
        [weight, bias], channels, groups, device=device, core_grid=grid, return_mask=True
    )
    assert weight.shape == [1, 1, channels // 32, 32]
    affine = {"weight": weight, "bias": bias, "input_mask": mask, "core_grid": grid}
    return ttnn.group_norm(tensor, num_groups=groups, epsilon=1e-6, inplace=False, **affine, **arguments)


def group_norm_reference(x, weight, bias, groups=32):
    return F.group_norm(x.squeeze(1).mT, groups, weight, bias, 1e-6).mT.unsqueeze(1)


@pytest.mark.parametrize("fidelity", [HIFI4, HIFI3, HIFI2])
@pytest.mark.parametrize("channels, pixels", [(64, 64), (96, 100), (512, 24), (32, 2080), (128, 4096)])
def test_group_norm(device, put, randn, channels, pixels, fidelity):
    x, w, b = randn(2, 1, pixels, channels), randn(channels), randn(channels)
    reference = group_norm_reference(x, w, b)
    for dtype, limit in ((ttnn.float32, 3e-3), (ttnn.bfloat16, 1e-2)):
        tensor = put(x, dtype)
        out = group_norm(device, tensor, w, b, compute_kernel_config=config(fidelity))
        assert error(out, reference) < limit * (1 if fidelity is not HIFI2 else 3)
        assert torch.equal(ttnn.to_torch(tensor).float(), x)


def test_group_norm_in_pieces(device, put, randn, monkeypatch):
    x, w, b = put(randn(1, 1, 1000, 64), ttnn.float32), randn(64), randn(64)
    whole = ttnn.to_torch(group_norm(device, x, w, b))
    monkeypatch.setattr("tt_flux_kontext.emulator.group_normalization.CHUNK_ELEMENTS", 64 * 64)
    assert torch.allclose(ttnn.to_torch(group_norm(device, x, w, b)), whole, atol=1e-5)


def test_statistics_are_of_the_maps_format(device, put, randn):
    """A core's count of 6 * 32 elements has an inverse root of which bf16 cuts ten times as much as TF32."""
    x, one, zero = randn(1, 1, 96, 192), torch.ones(192), torch.zeros(192)
    reference = group_norm_reference(x, one, zero)
    grid = {"core_grid": ttnn.CoreGrid(x=1, y=3)}
    gains = [
        gain(ttnn.group_norm(put(x, dtype), num_groups=32, inplace=False, **grid), reference)
        for dtype in (ttnn.bfloat16, ttnn.float32)
    ]
    assert gains[0] > 2 * gains[1] > 0
    shifted = (x + 4).bfloat16().float()
    errors = [
        error(ttnn.group_norm(put(shifted, dtype), num_groups=32, inplace=False, **grid), reference)
        for dtype in (ttnn.bfloat16, ttnn.float32)
    ]
    assert errors[0] > 2 * errors[1]


# The library's answers on its mock N150.
@pytest.mark.parametrize(
    "channels, rows, grid",
    [
        (512, 16384, (8, 8)),
        (512, 118 * 138, (8, 1)),
        (256, 472 * 552, (8, 6)),
        (64, 64, (4, 1)),
        (32, 24, (1, 1)),
        (96, 64, (2, 1)),
    ],
)
def test_group_norm_grids(device, channels, rows, grid):
    found = ttnn.determine_expected_group_norm_dram_grid_size(
        device=device, num_channels=channels, num_groups=32, input_nhw=rows
    )
    assert (found.x, found.y) == grid


# ---- the fused head norm


def head_norm(put, x, heads, per_head=True, weight=None, angles=None, **arguments):
    rope = {}
    if angles is not None:
        even, turn = torch.arange(0, 32, 2), torch.zeros(1, 1, 32, 32)
        turn[..., even + 1, even], turn[..., even, even + 1] = -1, 1
        rope = {"transformation_mat": put(turn), "rope_cos": put(angles.cos()), "rope_sin": put(angles.sin())}
    weight = None if weight is None else put(weight)
    return ttnn.experimental.dit_fused_distributed_rmsnorm(
        put(x), None, None, [], num_heads_per_device=heads, per_head_norm=per_head, weight=weight, **rope, **arguments
    )


@pytest.mark.parametrize("fidelity", [HIFI4, HIFI3])
@pytest.mark.parametrize("heads, size", [(8, 32), (4, 64), (2, 128), (24, 128)])
@pytest.mark.parametrize("rows", [1, 20, 64])
def test_head_norm(put, randn, heads, size, rows, fidelity):
    x, w, angles = randn(1, 1, rows, heads * size), randn(1, heads * size), randn(1, 1, rows, size)
    kernel = {"compute_kernel_config": config(fidelity)}
    normed = F.rms_norm(x.view(1, rows, heads, size), (size,), eps=1e-5) * w.view(heads, size)
    normed = normed.transpose(1, 2)
    assert error(head_norm(put, x, heads, weight=w, **kernel), normed) < BF16_ERROR
    turned = torch.stack([-normed[..., 1::2], normed[..., ::2]], -1).flatten(-2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    out = head_norm(put, x, heads, weight=w, angles=angles, **kernel)
    assert error(out, normed * cos + turned * sin) < BF16_ERROR
    whole = head_norm(put, x, heads, per_head=False, dtype=ttnn.float32, **kernel)
    reference = F.rms_norm(x, x.shape[-1:], eps=1e-5).view(1, rows, heads, size).transpose(1, 2)
    assert error(whole, reference) < TF32_ERROR


@pytest.mark.parametrize("heads, size", [(6, 32), (5, 64), (3, 64), (2, 96), (3, 32)])
def test_heads_that_fill_no_four_tiles_hang(put, randn, heads, size):
    x = randn(1, 1, 32, heads * size)
    for options in ({}, {"weight": randn(1, heads * size)}, {"angles": randn(1, 1, 32, size)}):
        with pytest.raises(RuntimeError, match="TT_FATAL: dit_fused_distributed_rmsnorm: would hang"):
            head_norm(put, x, heads, **options)
    head_norm(put, x, heads, per_head=False)


@pytest.mark.parametrize("rows, right", [(1, True), (32, True), (33, False), (63, False), (64, True), (77, False)])
def test_angles_of_a_last_tile_that_is_not_full_are_wrong(put, randn, rows, right):
    x, angles = randn(1, 1, rows, 256), randn(1, 1, rows, 64)
    assert head_norm(put, x, 4).shape == [1, 4, rows, 64]
    if right:
        head_norm(put, x, 4, angles=angles)
    else:
        with pytest.raises(RuntimeError, match="TT_FATAL: dit_fused_distributed_rmsnorm: would be wrong"):
            head_norm(put, x, 4, angles=angles)
