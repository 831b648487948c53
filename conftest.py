"""Fixtures with tt-metal's names, tiny checkpoints, and the accuracy table at the end of a run."""

import math
import os
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from reference.accuracy import BAR, Accuracy, table
from reference.make_checkpoint import make_checkpoint
from tt_flux_kontext.backend import choose
from tt_flux_kontext.device import open_device


@pytest.fixture
def device_params(request) -> dict:
    """Arguments of `open_device`, by default for one chip; set them with indirect parametrization."""
    return getattr(request, "param", {"mesh_shape": (1, 1)})


@pytest.fixture
def mesh_device(device_params):
    """An open device: the card where there is one, else the emulated one."""
    with open_device(**device_params) as device:
        yield device


@pytest.fixture
def reset_seeds():
    torch.manual_seed(213919)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint with random weights in the layout of the real one."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", size="tiny")


@pytest.fixture
def check_accuracy(request):
    """Holds a result against torch in float32 and in bfloat16, and adds a line to the table."""

    def check(
        module: str, out: torch.Tensor, reference: torch.Tensor, torch_bf16: torch.Tensor, limit: float = math.inf
    ) -> None:
        """`limit` bounds the relative RMSE itself too, where torch in bfloat16 is no measure."""
        assert out.shape == reference.shape
        row = Accuracy.of(module, out, reference, torch_bf16)
        assert row.ratio <= BAR and row.error <= limit, (
            f"{module}: relative RMSE {row.error:.5f} is {row.ratio:.2f} x that of torch bfloat16, "
            f"{row.torch_error:.5f}; PCC {row.pcc:.6f}"
        )
        request.node.user_properties.append((_ROW, astuple(row)))

    return check


_ROW = "accuracy"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: two processes, each of which takes up to 6 GB; a card takes one only."""
    return 1 if choose() == "silicon" else 2


def pytest_configure(config):
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that tests start


def pytest_terminal_summary(terminalreporter):
    passed = terminalreporter.getreports("passed")
    rows = [Accuracy(*row) for report in passed for name, row in report.user_properties if name == _ROW]
    if not rows:
        return
    terminalreporter.section(f"accuracy against torch float32 (ratio at most {BAR})")
    terminalreporter.write_line(table(rows))
