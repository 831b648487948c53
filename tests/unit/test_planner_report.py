"""The planner's report: its list of operations against TT-NN's profiler's, its picture against the plan."""

import ast
import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.unit.test_planner_operations import operation, place, rows
from tt_flux_kontext import cli
from tt_flux_kontext.planner import report
from tt_flux_kontext.planner.operations import Place
from tt_flux_kontext.planner.picture import KINDS, draw, kind
from tt_flux_kontext.planner.plan import PhasePlan, Plan, Request
from tt_flux_kontext.planner.roofline import CHIPS, time, upload_time

GB = 10**9
SQUARE = (1024, 1024)
TEXT, LONG, PART = place(1, 77, 768), place(1, 1, 8704, 3072), place(1, 1, 1088, 3072)

ON_CORES = Place((1, 1, 87552, 128), "BFLOAT16", tiled=True, dram=False)
CLIP = [
    operation("LayerNormDeviceOperation", [TEXT, place(1, 768)], [TEXT]),
    operation("MinimalMatmulDeviceOperation", [TEXT, place(768, 2304)], [place(1, 77, 2304)]),
]
STEP = [
    operation("MinimalMatmulDeviceOperation", [LONG, place(3072, 9216, dtype="BFLOAT8_B")], [place(1, 1, 8704, 9216)]),
    operation("SDPAOperation", [place(1, 24, 8704, 128)] * 3, [place(1, 24, 8704, 128)]),
    operation("AllGatherDeviceOperation", [PART], [LONG]),
]
DECODER = [operation("Conv2dDeviceOperation", [rows(512), place(1, 1, 576, 128)], [ON_CORES])]


def phase(name: str, count: int, done: list, memory: list[int], weights: int, upload: int) -> PhasePlan:
    """Of a T3K, where a chip has 13 GB. In a later edit the weights are there."""
    seconds = time(done, CHIPS["t3k"]).seconds
    peak = max([weights, *memory])
    figures = weights, peak, 13 * GB - peak, 0, len(done), 0, 1, 1, 0, seconds, 0.0, 0, upload
    return PhasePlan(name, count, *figures, done, memory)


@pytest.fixture(scope="module")
def plan() -> Plan:
    phases = [
        phase("clip", 1, CLIP, [3 * GB, 4 * GB], 2 * GB, 2 * GB),
        phase("vae encoder", 1, [], [], 2 * GB, 0),  # of a text alone
        phase("transformer weights", 1, [], [], 9 * GB, 7 * GB),
        phase("step", 28, STEP, [10 * GB, 11 * GB, 10 * GB], 9 * GB, 0),
        phase("vae decoder", 1, DECODER, [10 * GB], 9 * GB, 0),
    ]
    return Plan("t3k", Request(SQUARE, [SQUARE]), "bfp8_mixed", "bf16", {}, (4, 2), phases=phases)


@pytest.fixture(scope="module")
def folder(plan, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(plan, folder)
    return folder


@pytest.fixture(scope="module")
def listed(folder) -> list[dict]:
    with open(folder / report.OPERATIONS, newline="") as file:
        return list(csv.DictReader(file))


def test_columns_are_those_of_ttnns_profiler(listed, needs_ttnn):
    source = Path(importlib.util.find_spec("tracy").submodule_search_locations[0]) / "process_ops_logs.py"
    (header,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OPS_CSV_HEADER"
    ]
    tensor = re.compile(r"(INPUT|OUTPUT)_\d+_([WZYX]_PAD\[LOGICAL\]|LAYOUT|DATATYPE|MEMORY)")
    own = [column for column in listed[0] if not tensor.fullmatch(column)]
    assert own == [column for column in header if column in own]


def test_listed_operations_add_up_to_the_plan(plan, listed):
    """One step for all; phases without operations don't appear."""
    found = {}
    for row in listed:
        if row["OP TYPE"] == "signpost":
            assert "modelled" in row["ATTRIBUTES"]
            operations = found[row["OP CODE"]] = []
        else:
            operations.append(row)
    assert list(found) == ["clip", "step", "vae decoder"]
    for each in plan.phases:
        operations = found.get(each.name, [])
        assert [row["OP CODE"] for row in operations] == [done.name for done in each.operations]
        times = [int(row["DEVICE KERNEL DURATION [ns]"]) + int(row["OP TO OP LATENCY [ns]"]) for row in operations]
        assert sum(times) / 1e9 == pytest.approx(each.seconds, abs=1e-9 * len(times))


def test_listed_operations_start_after_the_one_before(listed):
    starts = [int(row["HOST START TS"]) for row in listed]
    lengths = [int(row["DEVICE KERNEL DURATION [ns]"] or 0) for row in listed]
    gaps = [after - start - length for start, length, after in zip(starts, lengths, starts[1:])]
    assert gaps == [int(row["OP TO OP LATENCY [ns]"] or 0) for row in listed[1:]]
    assert len(set(starts)) == len(starts)  # tools sort by it


def test_listed_tensors_are_as_the_profiler_has_them(listed):
    norm, product = listed[1:3]
    shape = [norm[f"INPUT_0_{name}_PAD[LOGICAL]"] for name in "WZYX"]
    assert shape == ["1[1]", "1[1]", "96[77]", "768[768]"]
    assert (norm["INPUT_0_LAYOUT"], norm["INPUT_0_DATATYPE"]) == ("TILE", "BFLOAT16")
    assert norm["INPUT_0_MEMORY"] == "DEV_0_DRAM_INTERLEAVED"
    assert (norm["MATH FIDELITY"], product["MATH FIDELITY"]) == ("", "HiFi2")
    convolution = listed[-1]
    assert convolution["INPUT_0_LAYOUT"] == "ROW_MAJOR" and convolution["INPUT_0_Y_PAD[LOGICAL]"] == "64[64]"
    assert convolution["OUTPUT_0_MEMORY"].startswith("DEV_0_L1_")
    assert {row["DEVICE ARCH"] for row in listed if row["OP TYPE"] != "signpost"} == {"wormhole_b0"}


@pytest.mark.parametrize(
    "name,expected",
    [
        ("RingJointSDPADeviceOperation", "attention"),
        ("SoftmaxDeviceOperation", "attention"),
        ("AllGatherMinimalMatmulAsyncOp", "matmul"),
        ("Conv2dDeviceOperation", "convolution"),
        ("DitFusedDistributedRmsnormDeviceOperation", "norm"),
        ("GroupNormDeviceOperation", "norm"),
        ("WelfordReduceDeviceOperation", "norm"),
        ("ReduceScatterDeviceOperation", "collectives"),
        ("NeighborPadAsyncDeviceOperation", "collectives"),
        ("TernaryDeviceOperation", "elementwise"),
        ("TypecastDeviceOperation", "data movement"),
    ],
)
def test_kinds_of_operations(name, expected):
    assert kind(operation(name, [], [])) == expected and expected in KINDS


@pytest.fixture
def drawn(plan) -> list[PhasePlan]:
    """Phases that do something."""
    return [each for each in plan.phases if each.name != "vae encoder"]


def test_bars_add_up_to_the_first_edit(plan, drawn):
    *_, by_phase, by_kind = draw(plan).axes
    lengths = {}
    for bar in by_phase.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        lengths[row] = lengths.get(row, 0) + bar.get_width()
    uploads = [upload_time(each.first_upload, CHIPS["t3k"]) for each in drawn]
    assert list(lengths.values()) == pytest.approx([each.seconds + upload for each, upload in zip(drawn, uploads)])
    assert [label.get_text() for label in by_phase.get_yticklabels()] == [
        "clip",
        "transformer weights",
        "step, one of 28",
        "vae decoder",
    ]
    assert sum(bar.get_width() for bar in by_kind.patches) == pytest.approx(plan.first_seconds)


def test_drawn_memory_is_the_plans(plan, drawn):
    panels = draw(plan).axes[: len(drawn)]
    for axes, each in zip(panels, drawn):
        tops = [area.get_datalim(axes.transData).y1 for area in axes.collections]
        assert max(tops) == each.peak and tops[0] == each.weights
        (limit,) = axes.lines
        assert set(limit.get_ydata()) == {13 * GB}
    assert [axes.texts[0].get_text() for axes in panels] == ["4.0 GB", "9.0 GB", "11.0 GB", "10.0 GB"]


def test_json_has_figures_and_no_operations(plan):
    phases = json.loads(json.dumps(plan.as_dict()))["phases"]
    assert [each["ops"] for each in phases] == [2, 0, 0, 3, 1]
    assert not {"operations", "memory"} & set(phases[0])


def test_a_report_is_two_files(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("tt_flux_kontext.planner.plan.plan", lambda *_: [plan])
    cli.main(["plan", "--system", "t3k", "--report", str(tmp_path / "new" / "folder")])
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [file.name for file in files] == [report.PICTURE, report.OPERATIONS]
    assert files[0].read_bytes().startswith(b"\x89PNG")


def test_what_can_not_be_written_is_refused_before_planning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tt_flux_kontext.planner.plan.plan", lambda *_: pytest.fail("planned"))
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "folder"
    assert cli.main(["plan", "--report", str(below)]) == 1
    assert capsys.readouterr().err.endswith(f"No report can be written to {below}: Not a directory.\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", "--report", str(tmp_path)]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
