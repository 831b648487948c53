"""Products on a CPU with bfloat16 units, against torch in float64: rounded once, whatever follows in the same operation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tt_flux_kontext.emulator as ttnn
from reference.accuracy import relative_rmse
from tt_flux_kontext.emulator import gemm

CPUINFO = Path("/proc/cpuinfo")


@pytest.fixture(autouse=True)
def units(monkeypatch):
    """As if the CPU had them (oneDNN converts where it hasn't), for products of any size."""
    monkeypatch.setattr(gemm, "has_native_bf16", lambda device_type: True)
    monkeypatch.setattr(gemm, "GROUPED_TERMS", 0)


@pytest.fixture(scope="module")
def device():
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1), l1_small_size=32768)
    yield device
    ttnn.close_mesh_device(device)


@pytest.fixture(scope="module")
def put(device):
    """A torch tensor as bf16 tiles on the device."""
    return lambda x: ttnn.from_torch(x, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=device)


@pytest.fixture
def randint():
    """Random multiples of 1/8 with so many significant bits: fidelities cut inputs of 6 and weights of 5 nowhere."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, bits: torch.randint(1 - 2**bits, 2**bits, shape, generator=generator) / 8


def config(fidelity):
    return ttnn.WormholeComputeKernelConfig(math_fidelity=ttnn.MathFidelity[fidelity], fp32_dest_acc_en=True)


def is_rounded_once(out, exact) -> bool:
    """By its error: a rounding to bf16 before the last makes it 1.4 times as large."""
    return relative_rmse(ttnn.to_torch(out), exact) < 1.06 * relative_rmse(exact.bfloat16(), exact)


@pytest.mark.parametrize("fidelity", ["LoFi", "HiFi2", "HiFi3", "HiFi4"])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu"])
def test_products(put, randint, fidelity, activation):
    x, w, b = randint(64, 128, bits=6), randint(128, 96, bits=5) / 128, randint(1, 96, bits=6) / 8
    named = {None: lambda x: x, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    follows = named.get(activation) or getattr(F, activation)
    options = {"activation": activation, "compute_kernel_config": config(fidelity)}
    with_bias, without = follows((x @ w + b).double()), follows((x @ w).double())
    assert is_rounded_once(ttnn.linear(put(x), put(w), bias=put(b), **options), with_bias)
    assert is_rounded_once(ttnn.linear(put(x.mT), put(w), bias=put(b), transpose_a=True, **options), with_bias)
    assert is_rounded_once(ttnn.linear(put(x), put(w.mT), bias=put(b), transpose_b=True, **options), with_bias)
    assert is_rounded_once(ttnn.matmul(put(x), put(w), **options), without)


def test_a_bias_of_several_rows(put, randint):
    x, w, b = randint(64, 128, bits=6), randint(128, 96, bits=5) / 128, randint(64, 96, bits=6) / 8
    out = ttnn.linear(put(x), put(w), bias=put(b), compute_kernel_config=config("HiFi4"))
    assert is_rounded_once(out, (x @ w + b).double())


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(device, put, randint, bias):
    x, w, b = randint(1, 12, 10, 64, bits=6), randint(96, 64, 3, 3, bits=5) / 256, randint(1, 1, 1, 96, bits=6) / 8
    out = ttnn.conv2d(
        input_tensor=put(x.reshape(1, 1, 120, 64)),
        weight_tensor=ttnn.from_torch(w, dtype=ttnn.bfloat16),
        bias_tensor=ttnn.from_torch(b, dtype=ttnn.bfloat16) if bias else None,
        device=device,
        in_channels=64,
        out_channels=96,
        batch_size=1,
        input_height=12,
        input_width=10,
        kernel_size=(3, 3),
        padding=(1, 1),
        compute_config=config("HiFi2"),
    )
    exact = F.conv2d(x.double().permute(0, 3, 1, 2), w.double(), b.double().flatten() if bias else None, padding=1)
    assert is_rounded_once(out, exact.permute(0, 2, 3, 1).reshape(1, 1, 120, 96))


@pytest.mark.skipif(not (gemm.X86 and CPUINFO.exists()), reason="only x86 under Linux tells")
def test_they_are_the_processors(monkeypatch):
    monkeypatch.undo()
    assert gemm.has_native_bf16("cpu") == ("avx512_bf16" in CPUINFO.read_text())
