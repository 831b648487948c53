"""Errors by depth: the tool at a tiny size; whole models at the real size where that is asked for."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reference.accuracy import BAR, table
from reference.depth import DEPTHS, TEXT_TOKENS, Inputs, errors, torch_t5
from reference.make_checkpoint import make_checkpoint
from reference.pipeline import load
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.device import open_device
from tt_flux_kontext.precision import PRECISIONS

FOLDER = "TT_FLUX_KONTEXT_FULL_SIZE"  # environment variable: a full-size checkpoint; without it one is made
MOST_MEMORY = 22e9  # bytes, of the process
LEAST_PCC = 0.99  # in any precision


def test_streamed_torch_is_the_loaded_one(tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint)
    inputs = Inputs.random(checkpoint, tokens=45, side=4)
    t5 = load(tiny_checkpoint).text_encoder_2
    with torch.no_grad():
        expected = t5(inputs.ids[None])[0][0]
    torch.testing.assert_close(torch_t5(checkpoint, torch.float32, inputs, ())["T5"], expected)


def test_errors_of_every_block(tiny_checkpoint, mesh_device):
    checkpoint = Checkpoint(tiny_checkpoint)
    inputs = Inputs.random(checkpoint, tokens=45, side=4)
    (found,) = errors(checkpoint, mesh_device, ["bf16"], inputs, depths=range(1, 6)).values()
    states = [f"T5 layer {i}" for i in (1, 2, 3)] + ["T5", "modulation"]
    states += [f"block {i}" for i in (1, 2, 3, 4, 5)] + ["velocity", "CLIP, pooled", "VAE encoder", "VAE decoder"]
    assert [row.module for row in found] == states
    assert all(0 < row.ratio <= BAR for row in found), table(found)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> Path:
    given = os.environ.get(FOLDER)
    return Path(given) if given else make_checkpoint(tmp_path_factory.mktemp("full") / "full", size="full")


@pytest.mark.slow
def test_full_size_errors_by_depth(full_size, capsys):
    checkpoint = Checkpoint(full_size)
    with open_device("emulated:p150") as device:
        found = errors(checkpoint, device, PRECISIONS, Inputs.random(checkpoint, TEXT_TOKENS, side=16), DEPTHS)
    with capsys.disabled():
        for precision, rows in found.items():
            print(f"\n{precision}\n{table(rows)}")
    assert all(row.ratio <= BAR for row in found["bf16"])
    assert all(row.pcc > LEAST_PCC for rows in found.values() for row in rows)


@pytest.mark.slow
def test_full_size_edit_in_22_gb(full_size, tmp_path):
    """Two steps at 256 x 256 with the real architecture, as the demo runs it on the emulated N150."""
    command = [sys.executable, "-m", "pytest", "demo", "--weights", str(full_size), "--device", "emulated:n150"]
    command += ["--width", "256", "--height", "256", "--steps", "2", "--out", str(tmp_path / "edited.png")]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    print(run.stdout)
    assert run.returncode == 0, run.stdout
    assert 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= MOST_MEMORY
