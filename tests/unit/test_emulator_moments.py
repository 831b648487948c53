"""Mean and variance down the rows, against torch in float64."""

import math

import pytest
import torch

import tt_flux_kontext.emulator as ttnn

ERROR = 1e-6


@pytest.fixture(scope="module")
def device():
    return ttnn.open_mesh_device(ttnn.MeshShape(1, 1), l1_small_size=32768)


def put(x, device, dtype=ttnn.float32, layout=ttnn.TILE_LAYOUT):
    return ttnn.from_torch(x, dtype=dtype, layout=layout, device=device)


@pytest.mark.parametrize("offset", [0, 1000], ids=["about zero", "far from it"])
@pytest.mark.parametrize("shape", [(1, 1, 64, 96), (1, 4, 45, 32)], ids=["whole tiles", "padding"])
def test_moments(device, shape, offset):
    x = torch.randn(shape) + offset
    exact = x.double()
    mean = ttnn.to_torch(ttnn.mean(put(x, device), dim=2, keepdim=True, scalar=0.3))
    assert torch.allclose(mean.double(), 0.3 * exact.mean(2, keepdim=True), rtol=ERROR, atol=ERROR)
    for correction in (False, True):
        variance = ttnn.to_torch(ttnn.var(put(x, device), dim=-2, keepdim=True, correction=correction))
        reference = exact.var(2, correction=int(correction), keepdim=True)
        assert variance.dtype == torch.float32 and variance.shape == reference.shape
        assert torch.allclose(variance.double(), reference, rtol=1e-4 if offset else 1e-5)


def test_inverse_root(device):
    x = torch.rand(1, 1, 1, 64)
    root = ttnn.add(put(x, device), 1e-6, activations=[ttnn.UnaryWithParam(ttnn.UnaryOpType.RSQRT)])
    assert torch.allclose(ttnn.to_torch(root), (x + 1e-6).rsqrt(), rtol=ERROR)


def test_padding_that_may_be_infinite(device):
    """As a convolution leaves it."""
    convolved = ttnn.conv2d(
        input_tensor=put(torch.randn(1, 1, 20, 32), device, ttnn.bfloat16),
        weight_tensor=ttnn.from_torch(torch.randn(32, 32, 1, 1), dtype=ttnn.bfloat16),
        device=device,
        in_channels=32,
        out_channels=32,
        batch_size=1,
        input_height=4,
        input_width=5,
        kernel_size=(1, 1),
        dtype=ttnn.float32,
    )
    assert convolved.unknown_padding
    for moment in (ttnn.mean, ttnn.var):
        assert math.isfinite(float(ttnn.to_torch(moment(convolved, dim=2, keepdim=True)).sum()))


@pytest.mark.parametrize("moment", [ttnn.mean, ttnn.var])
def test_what_is_not_emulated(device, moment):
    x = torch.zeros(1, 1, 64, 64)
    in_bf16 = ttnn.WormholeComputeKernelConfig(fp32_dest_acc_en=False)
    for wrong, options, message in (
        (put(x, device, ttnn.bfloat16), {"dim": 2}, "must be FLOAT32"),
        (put(x, device, layout=ttnn.ROW_MAJOR_LAYOUT), {"dim": 2}, "must be in Layout.TILE"),
        (put(x, device), {"dim": 3}, "only down the rows"),
        (put(x, device), {}, "only down the rows"),
        (put(x, device), {"dim": 2, "keepdim": False}, "only with keepdim"),
        (put(x, device), {"dim": 2, "compute_kernel_config": in_bf16}, "fp32_dest_acc_en must be set"),
    ):
        with pytest.raises(RuntimeError, match=message):
            moment(wrong, **{"keepdim": True} | options)
