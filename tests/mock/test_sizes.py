"""Whole edits with the full-size models on real TT-NN: it takes every call, and it fits."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from tests.mock.conftest import ON_P150, OTHERS, SOME, SQUARE, SYSTEM
from tests.systems import slow_unless_always
from tt_flux_kontext import cli
from tt_flux_kontext.planner.kontext_dev import CONFIGS
from tt_flux_kontext.planner.plan import Plan, Request, plan
from tt_flux_kontext.planner.roofline import CHIPS, time, upload_time
from tt_flux_kontext.planner.systems import SINGLE_CHIP, SYSTEMS

SPARE = 1_400_000_000  # bytes of DRAM that every phase must leave free on an N150
MESHES = [name for name in SYSTEMS if name not in SINGLE_CHIP]
MODEL_OF = {"step": "transformer", "transformer weights": "transformer"}  # of a phase that isn't named by it
PHASES = ["clip", "t5", "vae encoder", "modulation", "transformer weights", "step", "vae decoder"]


@pytest.fixture(scope="module")
def edits(plans) -> list[Plan]:
    return plans[:-1]


def test_real_ttnn_takes_every_call_of_every_edit(edits):
    assert len(edits) == 1 + len(SOME) + len(ON_P150)
    for each in edits:
        assert [phase.name for phase in each.phases] == PHASES, each.request


def test_what_does_not_fit_is_refused_before_any_upload(plans, capsys, monkeypatch):
    monkeypatch.setattr("tt_flux_kontext.planner.plan.plan", lambda *_: plans[-1:])
    assert cli.main(["plan", "--system", "n150", "--precision", "bf16", "--json"]) == 1
    (refused,) = json.loads(capsys.readouterr().out)
    assert refused["phases"] == [] and refused["best"] == "bfp8_mixed"
    assert "12.87 GB of DRAM in bf16" in refused["refused"]
    assert "transformer     17.40 GB      1.11 GB  18.51 GB  too much" in refused["refused"]
    assert "It fits with precision='bfp8_mixed'." in refused["refused"]


def test_n150_edits_1024_square_in_bfp8_mixed(square_plan):
    square = square_plan(SYSTEM)
    assert min(phase.free for phase in square.phases) >= SPARE
    assert square.best == square.precision == "bfp8_mixed"


def test_kernels_are_compiled_once(edits, square_plan):
    """Other sizes need others, and share most of CLIP's and T5's."""
    by_phase = {phase.name: phase.kernels for phase in square_plan(SYSTEM).phases}
    assert all(by_phase[name] > 10 for name in ("clip", "t5", "vae encoder", "step", "vae decoder")), by_phase
    first, second = edits[1:3]  # by one process
    assert 0 < second.kernels < first.kernels


def test_operations_of_a_plan_are_those_of_its_figures(square_plan):
    chip = CHIPS[SYSTEM]
    for phase in square_plan(SYSTEM).phases:
        assert len(phase.operations) == len(phase.memory) == phase.ops
        assert sum(operation.flop for operation in phase.operations) == phase.flop
        seconds = time(phase.operations, chip).seconds + upload_time(phase.upload, chip)
        assert seconds == pytest.approx(phase.seconds)
        assert max(phase.memory, default=0) <= phase.peak
        if phase.name in ("t5", "vae encoder", "step"):  # where no model makes room for another one with more
            assert max(phase.memory) == phase.peak


def test_reserved_memory_is_enough_and_not_far_too_much(edits, square_plan):
    """What the pipeline keeps free for a model's activations, against TT-NN's allocator."""
    for each in edits:
        assert_reserved_memory_is_enough(each)
    square = square_plan(SYSTEM)
    for phase in (phase for phase in square.phases if phase.name in ("t5", "vae encoder", "step", "vae decoder")):
        assert square.workspaces[MODEL_OF.get(phase.name, phase.name)] < 2 * (phase.peak - phase.weights), phase


@pytest.mark.parametrize("system", slow_unless_always(MESHES))
def test_reserved_memory_is_enough_on_each_chip_of_a_mesh(square_plan, system):
    assert_reserved_memory_is_enough(square_plan(system))


def assert_reserved_memory_is_enough(each: Plan) -> None:
    weights = 0
    for phase in each.phases:
        weights = max(weights, phase.weights)  # those that make room are there when it begins
        reserved = each.workspaces[MODEL_OF.get(phase.name, phase.name)]
        assert phase.peak - weights <= reserved, (each.system, each.request, phase)
        weights = phase.weights


@pytest.mark.slow
def test_all_buckets():
    assert len(SOME) + len(OTHERS) == 8
    for each in plan(SYSTEM, OTHERS):
        assert [phase.name for phase in each.phases] == PHASES, each.request
        assert_reserved_memory_is_enough(each)


@pytest.mark.slow
@pytest.mark.parametrize("system", MESHES)
def test_meshes_take_other_sizes(system):
    """Maps whose rows fill no tiles, texts that chips can't share evenly, a mask with two references."""
    requests = [
        Request((944, 1104), [(1104, 944)], "bfp8_mixed"),
        Request((752, 1392), [], "bfp8_mixed", images=2),
        Request((512, 512), [(512, 512), (768, 512)], "bfp8_mixed", text_tokens=77, masked=True),
    ]
    for each in plan(system, requests):
        assert [phase.name for phase in each.phases] == PHASES, each.request
        assert_reserved_memory_is_enough(each)


def test_flop_are_those_of_diffusers(square_plan):
    """Counted by torch on the modules of diffusers, against shapes that TT-NN's device operations had."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(CONFIGS["vae"])
        transformer = FluxTransformer2DModel.from_config(CONFIGS["transformer"])
        inputs = {
            "hidden_states": torch.zeros(1, 2 * 4096, 64),
            "encoder_hidden_states": torch.zeros(1, 512, 4096),
            "pooled_projections": torch.zeros(1, 768),
            "timestep": torch.zeros(1),
            "guidance": torch.zeros(1),
            "img_ids": torch.zeros(2 * 4096, 3),
            "txt_ids": torch.zeros(512, 3),
        }
    counted = {}
    for name, call in {
        "vae encoder": lambda: vae.encode(torch.zeros(1, 3, *SQUARE, device="meta")),
        "vae decoder": lambda: vae.decode(torch.zeros(1, 16, 128, 128, device="meta")),
        "step": lambda: transformer(**inputs),
    }.items():
        with FlopCounterMode(display=False) as counter:
            call()
        counted[name] = counter.get_total_flops()
    ours = {phase.name: phase.flop for phase in square_plan(SYSTEM).phases}
    assert ours["vae encoder"] == counted["vae encoder"]
    assert ours["vae decoder"] == counted["vae decoder"]
    # diffusers embeds time and modulates in each step, and projects the reference's rows out too.
    assert ours["step"] == pytest.approx(counted["step"], rel=1e-3)
