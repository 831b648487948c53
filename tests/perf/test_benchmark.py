"""The emulator's benchmark runs and covers every stage. How long it takes is the machine's matter: no bound."""

import json
import math
import subprocess
import sys

import pytest

STAGES = ["double block", "single block", "CLIP-L", "T5-XXL layer", "VAE encoder", "VAE decoder"]


@pytest.mark.slow
def test_benchmark_has_all_stages(tmp_path, capsys):
    file = tmp_path / "benchmark.json"
    sizes = ["--tokens", "544", "--t5-tokens", "32", "--pixels", "32", "--rounds", "1"]
    # In a process of its own, since it chooses the emulated device.
    command = [sys.executable, "-m", "reference.benchmark", *sizes, "--json", file]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = json.loads(file.read_text())
    with capsys.disabled():
        print("\n" + result.stdout)
    assert [row["stage"] for row in rows] == STAGES
    for row in rows:
        assert row["kind"] == "emulated"
        assert all(0 < row[torch_in]["ratio"] < math.inf for torch_in in ("torch bf16", "torch float32"))
