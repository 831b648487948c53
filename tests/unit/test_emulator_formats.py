"""Number formats: rounding, block floats, what the multipliers see."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tt_flux_kontext.emulator import formats
from tt_flux_kontext.emulator.types import DataType, MathFidelity

BLOCK_FLOATS = [DataType.BFLOAT8_B, DataType.BFLOAT4_B]
floats = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


def nearest_away(value: float, step: float) -> float:
    """``value`` rounded to a multiple of ``step``, ties away from zero; exact for powers of two."""
    whole, rest = divmod(abs(value), step)
    rounded = (whole + (rest >= step / 2)) * step
    return rounded if value > 0 else -rounded


@given(st.lists(floats, min_size=1, max_size=64))
def test_bf16_results_round_ties_away_from_zero(values):
    x = torch.tensor(values, dtype=torch.float32)
    rounded = formats.round_to_bf16_(x.clone())
    assert torch.equal(rounded, rounded.to(torch.bfloat16).float())
    for before, after in zip(x.double().tolist(), rounded.double().tolist()):
        step = 2.0 ** (torch.tensor(before, dtype=torch.float64).frexp().exponent.item() - 8) if before else 1.0
        expected = nearest_away(before, step)
        assert after == expected or abs(expected) > torch.finfo(torch.bfloat16).max


def test_host_and_packer_differ_on_ties():
    tie = torch.tensor([1 + 2**-8, -(1 + 2**-8)])
    assert formats.host_convert(tie, DataType.BFLOAT16).tolist() == [1.0, -1.0]
    assert formats.pack(tie, DataType.BFLOAT16).tolist() == [1 + 2**-7, -(1 + 2**-7)]


def test_infinities_and_nan_survive_the_packer():
    packed = formats.pack(torch.tensor([float("inf"), float("-inf"), float("nan")]), DataType.BFLOAT16)
    assert packed[:2].tolist() == [float("inf"), float("-inf")] and packed[2].isnan()


@pytest.mark.parametrize("dtype", BLOCK_FLOATS)
@pytest.mark.parametrize("convert", [formats.host_convert, formats.pack])
@settings(deadline=None)
@given(data=st.data())
def test_block_floats_share_an_exponent_and_are_stable(convert, dtype, data):
    width = data.draw(st.integers(1, 70))
    rows = data.draw(
        st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=width, max_size=width), min_size=1, max_size=3)
    )
    x = torch.tensor(rows)
    once = convert(x.clone(), dtype).float()
    assert torch.equal(convert(once.clone(), dtype).float(), once)
    kept = formats.MAGNITUDE_BITS[dtype]
    for block, result in zip(x.split(16, -1), once.split(16, -1)):
        largest = block.abs().amax(-1, keepdim=True)
        # The packer cuts bfp4 off and may round up to the next exponent before it does.
        unit = 2.0 ** (largest.frexp().exponent - kept) * (1 if convert is formats.host_convert else 2)
        assert torch.all(((result - block).abs() <= unit) | (largest < 1e-30))


def test_packer_rule_for_block_floats_by_hand():
    # 1 + 3/128 is a tie between 6 fraction bits; away from zero it becomes 1 + 2/64.
    x = torch.tensor([[1 + 3 / 128, 1 / 64 + 1 / 128, -1 / 128, 1 / 256] + [0.0] * 12])
    assert formats.pack(x.clone(), DataType.BFLOAT8_B)[0, :4].tolist() == [1 + 2 / 64, 2 / 64, -1 / 64, 0.0]
    assert formats.pack(torch.full((1, 16), 1.98), DataType.BFLOAT8_B)[0, 0] == 127 / 64  # saturates
    assert formats.pack(torch.tensor([[1.0, 0.49] + [0.0] * 14]), DataType.BFLOAT4_B)[0, :2].tolist() == [1.0, 0.25]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_truncation_keeps_significant_bits(dtype):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for kept in (5, 7):
        mantissa, exponent = formats.keep_significant_bits(x, kept).double().frexp()
        assert torch.equal(mantissa * 2**kept, (x.double().frexp().mantissa * 2**kept).trunc())
        assert torch.equal(exponent, x.double().frexp().exponent)


@pytest.mark.parametrize("fidelity", [MathFidelity.LoFi, MathFidelity.HiFi2, MathFidelity.HiFi3, MathFidelity.HiFi4])
def test_phases_and_merged_operands_agree(fidelity):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(1000, generator=generator).bfloat16() for _ in range(2))
    phases = sum(x.double() * y.double() for x, y in formats.multiplier_phases(a, b, fidelity))
    merged = sum(x.double() * y.double() for x, y in formats.multiplier_operands(a, b, fidelity))
    assert torch.equal(phases, merged)
    low = (a - formats.keep_significant_bits(a, 7)).double() * (b - formats.keep_significant_bits(b, 5)).double()
    exact = {
        MathFidelity.LoFi: formats.keep_significant_bits(a, 7).double() * formats.keep_significant_bits(b, 5).double(),
        MathFidelity.HiFi2: formats.keep_significant_bits(a, 7).double() * b.double(),
        MathFidelity.HiFi3: a.double() * b.double() - low,
        MathFidelity.HiFi4: a.double() * b.double(),
    }
    assert torch.equal(merged, exact[fidelity])


CASES = {
    "normal": lambda g: torch.randn(64, 77, generator=g),
    "any bits": lambda g: torch.randint(-(2**31), 2**31, (256, 96), generator=g).int().view(torch.float32),
    "close exponents": lambda g: _floats(g, 120, 130),
    "denormals": lambda g: _floats(g, 0, 9),
    "up to infinity and NaN": lambda g: _floats(g, 250, 256),
    "ties": lambda g: torch.arange(-2048, 2048).float().div(256).view(64, 64),
}


def _floats(generator, lowest, highest):
    """Random fp32 values with exponent fields from ``lowest`` up to but without ``highest``."""
    shape = (128, 64)
    mantissa = torch.randint(0, 2**23, shape, generator=generator)
    exponent = torch.randint(lowest, highest, shape, generator=generator) << 23
    sign = torch.randint(-1, 1, shape, generator=generator) << 31
    return (mantissa | exponent | sign).int().view(torch.float32)


# A Wormhole board that is not there: the library wants to know an architecture before it converts block floats.
BOARD = {
    "arch": {0: "wormhole_b0"},
    "chips": {0: [0, 0, 0, 0]},
    "chips_with_mmio": [{0: 0}],
    "ethernet_connections": [],
    "ethernet_connections_to_remote_devices": [],
    "harvesting": {0: {"noc_translation": True, "harvest_mask": 64, "dram_harvesting_mask": 0,
                       "eth_harvesting_mask": 0, "pcie_harvesting_mask": 0}},
    "boards": [[{"board_id": 72059269368820857}, {"board_type": "n150"}, {"chips": [0]}]],
}  # fmt: skip

CHILD = """
import sys, torch, ttnn
inputs, results = torch.load(sys.argv[1]), {}
for name, x in inputs.items():
    for dtype in ("bfloat16", "bfloat8_b", "bfloat4_b"):
        tensor = ttnn.from_torch(x, dtype=getattr(ttnn, dtype), layout=ttnn.TILE_LAYOUT)
        results[name, dtype.upper()] = ttnn.to_torch(tensor).float()
torch.save(results, sys.argv[2])
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """CASES and what the library's host conversions make of them: {case: x}, {(case, dtype name): fp32 tensor}.

    In a child process, because the library looks for devices when it is imported.
    """
    if importlib.util.find_spec("ttnn") is None:
        pytest.skip("ttnn is not installed: no library to compare conversions with")
    folder = tmp_path_factory.mktemp("ttnn")
    inputs = {name: make(torch.Generator().manual_seed(2)) for name, make in CASES.items()}
    torch.save(inputs, folder / "inputs.pt")
    (folder / "board.yaml").write_text(json.dumps(BOARD))
    environment = os.environ | {
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(folder / "board.yaml"),
        "TT_METAL_CACHE": f"{folder}/cache/",
        "TT_METAL_LOGS_PATH": str(folder),
        "TT_LOGGER_LEVEL": "off",
        "LOGURU_LEVEL": "ERROR",
    }
    command = [sys.executable, "-c", CHILD, str(folder / "inputs.pt"), str(folder / "outputs.pt")]
    child = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr[:2000]
    return inputs, torch.load(folder / "outputs.pt")


@pytest.mark.parametrize("dtype", [DataType.BFLOAT16, *BLOCK_FLOATS])
@pytest.mark.parametrize("case", CASES)
def test_host_conversion_equals_the_library_bit_for_bit(library, case, dtype):
    inputs, outputs = library
    ours = formats.host_convert(inputs[case], dtype).float()
    theirs = outputs[case, dtype.name]
    same = (ours.view(torch.int32) == theirs.view(torch.int32)) | (ours.isnan() & theirs.isnan())
    assert same.all(), f"{(~same).sum()} of {same.numel()} values differ"
