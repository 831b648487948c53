"""Choosing a device. Each choice is for a whole process, so these run in new ones."""

import importlib.util
import os
import subprocess
import sys

import pytest


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TT_")}
    return subprocess.run([sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True)


OPEN = (
    "from tt_flux_kontext.device import open_device, dram_bytes\nwith open_device({!r}) as d: print(dram_bytes(d)[1])"
)


@pytest.mark.parametrize("name,total", [("emulated", 12.87e9), ("emulated:n150", 12.87e9), ("emulated:p150", 34.22e9)])
def test_emulated_systems(name, total):
    result = run(OPEN.format(name))
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(total, rel=1e-2)


@pytest.mark.parametrize(
    "name,message",
    [
        ("cuda", "Unknown device 'cuda': it is one of silicon, emulated."),
        ("emulated:n9", "Unknown device 'emulated:n9': it is silicon, emulated, or one of emulated:n150"),
    ],
)
def test_unknown_device(name, message):
    result = run(OPEN.format(name))
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]


def test_environment_variable():
    result = run("from tt_flux_kontext.backend import choose; print(choose())", TT_FLUX_KONTEXT_BACKEND="emulated")
    assert result.stdout == "emulated\n"
    result = run("from tt_flux_kontext.backend import choose; print(choose())", TT_FLUX_KONTEXT_BACKEND="fpga")
    assert "Unknown device 'fpga'" in result.stderr


def test_one_device_a_process():
    code = "from tt_flux_kontext.backend import choose, ttnn; choose('emulated'); ttnn.bfloat16; choose('silicon')"
    result = run(code)
    assert "already runs on the 'emulated' device and can't change to 'silicon'" in result.stderr


def test_silicon_without_a_card():
    """One sentence, and no traces of C++; what TT-NN has in the place of a card counts as one."""
    code = """
import pathlib
from tt_flux_kontext import backend, open_device
backend.NODES = pathlib.Path("/nowhere")
with open_device({}): pass
"""
    for name, environment in (("'silicon'", {}), ("", {"TT_FLUX_KONTEXT_BACKEND": "silicon"})):
        result = run(code.format(name), **environment)
        if importlib.util.find_spec("ttnn"):
            assert result.stderr.splitlines()[-1] == (
                "RuntimeError: No Tenstorrent card was found: is its driver tt-kmd loaded (ls /nowhere), and what does "
                "tt-smi say? Use the 'emulated' device without one."
            )
        else:
            assert "which this Python doesn't have" in result.stderr.splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("ttnn") is None, reason="this Python has no ttnn wheel")
@pytest.mark.parametrize("variable", ["TT_METAL_SIMULATOR", "TT_METAL_MOCK_CLUSTER_DESC_PATH"])
def test_stand_ins_for_a_card(variable):
    assert run("from tt_flux_kontext.backend import choose; print(choose())", **{variable: "x"}).stdout == "silicon\n"


def test_importing_does_not_choose():
    code = "import tt_flux_kontext; from tt_flux_kontext.backend import ttnn; print(ttnn.chosen)"
    assert run(code).stdout == "None\n"
