"""What an edit takes must be what targets.json says: planned on TT-NN's mock device, measured where there is a card.

A change for the better fails as one for the worse does. An intended one is written down with a command, see `targets`.
"""

import csv
import json
import math
from dataclasses import replace

import pytest

from tests.perf import targets, tt_dit_flux1
from tests.perf.measured import (
    DEVICE_STEP,
    FIRST_EDIT,
    OUT,
    edit_seconds,
    report,
    step_seconds,
    system_name,
    write_perf_csv,
)
from tests.perf.targets import EDIT, JOBS, PRECISIONS, RENEW, SQUARE, STAGES, STEPS, off_target, perf_md
from tests.systems import slow_unless_always
from tt_flux_kontext.backend import choose
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.device import open_device
from tt_flux_kontext.mesh import System
from tt_flux_kontext.pipeline import FluxKontextPipeline
from tt_flux_kontext.planner.kontext_dev import full_size_edit, full_size_editor
from tt_flux_kontext.planner.mock_device import available, run
from tt_flux_kontext.planner.plan import PhasePlan, Plan
from tt_flux_kontext.planner.roofline import CALIBRATION, CHIPS, MESH_LIMITS, MESHES, Figure, time
from tt_flux_kontext.planner.systems import SYSTEMS

# Modelled seconds of a step.
MOST_SECONDS = {"n300": 1.85, "t3k": 0.60, "galaxy": 0.15, "p300": 0.87, "p150x4": 0.46}

# Device operations of one denoising step. A block's modulation is a product for each of its streams; "modulation" has
# those of a double block (2), a single block (1) and the output norm (1).
MOST_OPS = {"double block": 28, "single block": 10, "modulation": 4}


@pytest.fixture(scope="module", autouse=True)
def plans_begun(request):
    """In the background all that will be asked for: one after the other would leave a processor idle."""
    tests = {item.name for item in request.session.items}
    asked = [key for key in JOBS if f"test_planned_edit[{key}-{EDIT}]" in tests]
    if asked and available():
        for key in asked:
            request.getfixturevalue("begin_square_plan")(key)


@pytest.mark.parametrize("stage", [*STAGES, EDIT])
@pytest.mark.parametrize("key", slow_unless_always(JOBS))
def test_planned_edit(square_plan, key, stage):
    target = targets.load()[key]["planned"][stage]
    _hold(off_target(f"{key}, {stage}", target, targets.figures(square_plan(key))[stage]), RENEW)


@pytest.mark.parametrize("system,most", MOST_SECONDS.items())
def test_a_step_on_several_chips_is_quick(system, most):
    assert targets.load()[system]["planned"]["step"]["seconds"] <= most


def test_more_chips_cost_no_operation_but_sums():
    """Split by tokens a step has those of one chip, or fewer: ring attention takes both sequences of a double block,
    where one chip puts keys and values together and attends twice. By features it has sums too, which scatter."""
    ops = {key: target["planned"]["step"]["ops"] for key, target in targets.load().items()}
    sums = 4 * 19 + 38  # of a double block's two attentions and two feed-forwards, and of a single block
    shortened = 2 * 19 + 38  # values for the ring attention of four chips with one link
    by_tokens = {"n300", "p300", "p150x4"}
    assert {ops[system] for system in by_tokens} == {ops["n150"] - 3 * 19}
    assert ops["galaxy"] == ops["n300"] + sums and ops["t3k"] == ops["galaxy"] + shortened


@pytest.mark.parametrize("system", slow_unless_always(MOST_SECONDS))
def test_chips_share_the_work_of_one(square_plan, system):
    """FLOP of a step, all chips together: no chip does what another one does, but for padding."""
    flop = {name: _phase(square_plan(name), "step").flop for name in ("n150", system)}
    assert math.prod(SYSTEMS[system].mesh_shape) * flop[system] == pytest.approx(flop["n150"], rel=1e-3)


def _phase(edit: Plan, name: str) -> PhasePlan:
    return next(phase for phase in edit.phases if phase.name == name)


def test_p150_edits_1024_square_in_bf16_with_nothing_evicted(square_plan):
    square = square_plan("p150")
    weights = [phase.weights for phase in square.phases]
    # The modulation's make room, and nothing else does.
    modulation = weights[3] - weights[2]
    assert weights[-1] == pytest.approx(weights[3] - modulation + (weights[4] - weights[2]) + (weights[6] - weights[5]))
    assert weights[-1] > 27e9 and square.best == "bf16"


@pytest.mark.usefixtures("needs_ttnn")
def test_calibration_is_what_the_model_says():
    (modelled,) = run("n150", "tests.perf.bf16_vae", {"system": "n150"})
    modelled["attention"] = time([tt_dit_flux1.joint_attention(24, 4096, 333)], CHIPS["p100"]).seconds
    for figure, name in zip(CALIBRATION[1:], ("vae encoder", "vae decoder", "attention"), strict=True):
        assert modelled[name] == pytest.approx(figure.modelled, rel=0.01)
    assert all(abs(figure.error) < 0.1 for figure in CALIBRATION)


@pytest.mark.parametrize(
    "figure,system,sp,tp,links",
    [
        (MESHES[0], "t3k", 2, 4, 1),
        (MESHES[1], "galaxy", 4, 8, 4),
        (MESH_LIMITS[0], "p300", 1, 2, 2),
        (MESH_LIMITS[1], "p150x4", 2, 2, 2),
        (MESH_LIMITS[2], "p150x4", 2, 4, 2),
    ],
    ids=lambda value: value.what if isinstance(value, Figure) else None,
)
def test_figures_of_meshes_are_what_the_model_says(figure, system, sp, tp, links):
    """As tt_dit runs: on lines, with these links."""
    chip = replace(CHIPS[system], mesh=System(((sp, tp),), links=links))
    assert time(tt_dit_flux1.step(sp, tp), chip).seconds == pytest.approx(figure.modelled, rel=0.01)
    assert -0.5 < figure.error < 0


@pytest.mark.usefixtures("needs_ttnn")
@pytest.mark.parametrize("system", ["n150", "p150"])  # one of each kind of chip
def test_device_operations_of_blocks(system):
    (counts,) = run(system, "tests.perf.block_ops", {"precision": PRECISIONS[system]})
    assert counts.pop("system") == system
    assert counts.keys() == MOST_OPS.keys()
    assert all(counts[name] <= MOST_OPS[name] for name in counts), f"{system}: {counts}, at most {MOST_OPS}"


@pytest.fixture
def card():
    """An open card."""
    if choose() != "silicon":
        pytest.skip("no Tenstorrent card: TT-NN is emulated here")
    with open_device("silicon") as device:
        yield device


@pytest.mark.models_performance_bare_metal
def test_measured_edit(card, capsys):
    """Seconds by stage. The weights have their size but no values: loading them from files is not in the figures."""
    system = system_name()
    editor = full_size_editor(card, _precision(system))
    seconds = edit_seconds(editor, full_size_edit(SQUARE, [SQUARE], images=1, text_tokens=512, steps=STEPS))
    expected = targets.load().get(system, {}).get("planned", {}).get(EDIT, {}).get("seconds", math.nan)
    setting = f"{system}_{_precision(system)}_1024x1024_{STEPS}_steps"
    write_perf_csv(OUT, setting, seconds[FIRST_EDIT], seconds[EDIT], expected)
    _report_and_hold(f"measured_edit_{system}.json", system, seconds, capsys)


@pytest.mark.models_device_performance_bare_metal
def test_measured_step(card, capsys):
    """Seconds of a denoising step between two waits for the device, which takes far longer than to queue its work."""
    system = system_name()
    editor = full_size_editor(card, _precision(system))
    seconds = step_seconds(editor, full_size_edit(SQUARE, [SQUARE], images=1, text_tokens=512, steps=6))
    _report_and_hold(f"measured_step_{system}.json", system, seconds, capsys)


def _precision(system: str) -> str:
    return PRECISIONS.get(system, "bfp8_mixed")  # any other card: what fits them all


def _report_and_hold(file: str, system: str, seconds: dict[str, float], capsys) -> None:
    """Prints the figures, and holds those against their targets that have one."""
    with capsys.disabled():
        print(report(file, system, seconds))
    known = targets.load().get(system, {}).get("measured", {})
    lines = []
    for stage in seconds.keys() & known.keys():
        lines += off_target(f"{system}, {stage}", {"measured": known[stage]}, {"measured": seconds[stage]})
    _hold(lines, f"{RENEW} --measured out/{file}")


def _hold(lines: list[str], command: str) -> None:
    if lines:
        pytest.fail("\n".join([*lines, f"If this is intended: {command}"]), pytrace=False)


def test_measuring_covers_the_edit(tiny_checkpoint, mesh_device):
    """The functions of the measured tests, with tiny models on the device at hand."""
    pipe = FluxKontextPipeline(Checkpoint(tiny_checkpoint), mesh_device)
    edit = full_size_edit((64, 64), [(64, 64)], images=1, text_tokens=32, steps=3)
    seconds = edit_seconds(pipe._editor, edit)
    assert set(seconds) == {*STAGES, "transformer weights", EDIT, FIRST_EDIT}
    others = sum(seconds[name] for name in seconds if name not in ("step", EDIT, FIRST_EDIT))
    assert seconds[EDIT] == pytest.approx(others + 3 * seconds["step"])
    step = step_seconds(pipe._editor, edit)
    assert list(step) == [DEVICE_STEP] and 0 < step[DEVICE_STEP] < seconds[EDIT]


@pytest.mark.parametrize("factor,complaints", [(1.02, 1), (1.005, 0), (0.98, 1)])
def test_both_directions_are_off_target(factor, complaints):
    lines = off_target("n150, step", {"ops": 942, "seconds": 3.4}, {"ops": 942, "seconds": 3.4 * factor})
    assert len(lines) == complaints
    assert all("n150, step: modelled seconds: was 3.4, is" in line for line in lines)
    assert off_target("n150, step", {"ops": 942}, {"ops": 941}) and off_target("n150, step", {}, {"ops": 942})


def test_measured_figures_become_targets(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "PATH", tmp_path / "targets.json")
    monkeypatch.setattr(targets, "PERF_MD", tmp_path / "PERF.md")
    planned = {"edit": {"seconds": 98.0}, "step": {"seconds": 3.4}}
    targets.PATH.write_text(json.dumps({"n150": {"precision": "bfp8", "planned": planned}}))
    row = {"system": "n150", "stage": "step", "seconds": 1.23456, "kind": "measured"}
    (tmp_path / "card.json").write_text(json.dumps([row, row | {"stage": "edit", "seconds": 99}]))
    targets.take_over([tmp_path / "card.json"])
    measured = {"step": 1.235, "edit": 99.0}
    assert targets.load()["n150"] == {"precision": "bfp8", "planned": planned, "measured": measured}
    assert "| n150 | bfp8 | 98.0 | 99.0 | 3400 | 0.6 |" in targets.PERF_MD.read_text()
    (tmp_path / "emulated.json").write_text(json.dumps([row | {"kind": "emulated"}]))
    with pytest.raises(ValueError, match="not measured on a card"):
        targets.take_over([tmp_path / "emulated.json"])


def test_the_page_has_the_targets():
    assert targets.PERF_MD.read_text() == perf_md(targets.load()), f"renew it: {RENEW}"


def test_csv_is_what_tt_metals_ci_reads(tmp_path):
    """Its checker splits two lines at commas, takes the row by the columns' names, and reads numbers."""
    file = write_perf_csv(tmp_path, "n150_bfp8", first=120.0, second=100.0, expected=98.25)
    assert file.name.startswith("perf_flux1_kontext_dev_n150_bfp8_20")
    columns, values = csv.reader(file.open(), skipinitialspace=True)
    row = dict(zip(columns, values, strict=True))
    assert columns[:4] == ["Model", "Setting", "Batch", "First Run (sec)"] and len(columns) == 12
    assert float(row["Inference Time (sec)"]) == 100 and float(row["Expected Inference Time (sec)"]) == 98.25
    assert float(row["Compile Time (sec)"]) == 20 and math.isnan(float(row["Expected Compile Time (sec)"]))
    assert float(row["Throughput (batch*inf/sec)"]) == 0.01
