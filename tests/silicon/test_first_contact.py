"""The command for a first contact with a card, without one."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.silicon import child, first_contact
from tests.silicon.attempt import Ending, attempt
from tests.silicon.case import Case
from tests.silicon.cases import CASES
from tests.silicon.child import in_a_line
from tests.silicon.versions import versions
from tt_flux_kontext import backend
from tt_flux_kontext.backend import choose
from tt_flux_kontext.planner.mock_device import environment

HANGS = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


def python(code: str, folder: Path, limit: float = 60) -> Ending:
    return attempt([sys.executable, "-c", code], limit, folder / "log")


@pytest.mark.parametrize(
    "code,words",
    [
        ("print('all well')", None),
        ("import os; os.kill(os.getpid(), 11)", "crashed with signal 11 (SIGSEGV)"),
        ("import os; os.abort()", "crashed with signal 6 (SIGABRT)"),
        ("raise ValueError('of this\\nand that')", "and that"),
        ("raise SystemExit(3)", "it failed without a word"),
    ],
)
def test_endings(tmp_path, code, words):
    ending = python(code, tmp_path)
    assert ending.words == words and not ending.killed


def test_what_hangs_is_killed_with_its_children(tmp_path):
    ending = python(HANGS, tmp_path, limit=2)
    assert ending.words == "hung after 2 s" and ending.killed and ending.seconds < 8
    child = Path("/proc", (tmp_path / "log").read_text().strip(), "cmdline")
    deadline = time.monotonic() + 2
    while child.exists() and child.read_bytes():  # what is dead and not yet buried has no command line
        assert time.monotonic() < deadline, "its child lives on"


def test_errors_of_ttnn_in_a_line():
    error = RuntimeError("TT_FATAL @ op.cpp:12: a == b\ninfo:\nwidths differ: 64 and 32\nbacktrace:\n --- frame\n")
    assert in_a_line(error) == "RuntimeError: widths differ: 64 and 32"
    assert in_a_line(KeyError()) == "KeyError: "


def test_child_goes_on_after_an_error(tmp_path, monkeypatch):
    def fails(bench, **inputs):
        raise RuntimeError("TT_FATAL: a\ninfo:\nno room\nbacktrace:\n---")

    monkeypatch.setitem(CASES, "to_heads", replace(CASES["to_heads"], operation=fails))
    assert child.main(choose(), tmp_path, ["to_heads", "embedding"]) == 1
    assert (tmp_path / "to_heads.error").read_text() == "RuntimeError: no room"
    out, reference = first_contact._result(tmp_path, "embedding")
    assert torch.equal(out, reference)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["embedding.npz", "to_heads.error"]


def test_rows_go_on_after_a_hang_and_a_crash(tmp_path, monkeypatch):
    """Three children: one hangs, one dies, one gives what the kernels did."""
    good = "embedding"
    kernel = CASES[good].kernel()
    endings = {
        "to_heads": HANGS,
        "merge_heads": "import os; print('last words', flush=True); os.kill(os.getpid(), 11)",
        good: "",
    }
    for function, stand_in in {
        "_command": lambda device, folder, names: [sys.executable, "-c", endings[names[0]]],
        "_result": lambda folder, name: (kernel, kernel) if name == good else None,
        "run_emulated": lambda names, folder: {name: (kernel, kernel) for name in names},
    }.items():
        monkeypatch.setattr(first_contact, function, stand_in)
    monkeypatch.setattr(Case, "kernel", lambda case: kernel)
    said, out = [], tmp_path / "deep/report.json"
    rows = first_contact.first_contact(list(endings), "silicon", 2, out, said.append)
    assert [each.words for each in rows] == ["hung after 2 s", "crashed with signal 11 (SIGSEGV)", None]
    assert [each.after_a_kill for each in rows] == [False, True, False]
    assert rows[1].log == "last words" and rows[2].to_kernels == rows[2].to_emulated == 0
    report = json.loads(out.read_text())
    assert [each["name"] for each in report["rows"]] == list(endings) and report["machine"]["ttnn"]
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    assert "hung after 2 s" in said[-3] and "(after a kill)" in said[-2] and said[-1].endswith("ok")


def test_values_far_off_fail_their_row():
    case = CASES["embedding"]
    kernel = case.kernel()
    wrong = kernel.clone()
    wrong[0] = torch.nan
    row = first_contact.row(case, Ending(None, 1.0), wrong, (kernel, kernel), after_a_kill=False, log="")
    assert row.words == "not: every bit the same"
    assert json.loads(json.dumps(first_contact._plain(vars(row))))["device"] == "nan"


def test_versions(tmp_path):
    found = versions(tmp_path)
    assert found["driver (tt-kmd)"] == "unknown" and found["cards"] == {} and found["devices"] == []
    for file, words in {
        "sys/module/tenstorrent/version": "2.3.0\n",
        "sys/class/tenstorrent/tenstorrent!0/tt_fw_bundle_ver": "18.7.0.0\n",
        "dev/tenstorrent/0": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(words)
    found = versions(tmp_path)
    assert found["driver (tt-kmd)"] == "2.3.0" and len(found["devices"]) == 1
    assert found["cards"] == {"tenstorrent!0": {"type": "unknown", "firmware": "18.7.0.0"}}


@pytest.fixture
def command(monkeypatch):
    """The command, in this process; its children are real."""

    def command(*arguments: str) -> str | int:
        monkeypatch.setattr(sys, "argv", ["first_contact", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            first_contact.main()
        return exit_info.value.code

    return command


def test_on_the_mock_device(command, capsys, tmp_path, needs_ttnn, monkeypatch):
    """TT-NN itself in the place of a card. Its mock computes nothing: the row fails by values alone."""
    for name, value in environment("n150", tmp_path).items():
        monkeypatch.setenv(name, value)
    kernel = CASES["embedding"].kernel()
    monkeypatch.setattr(first_contact, "run_emulated", lambda names, folder: {"embedding": (kernel, kernel)})
    out = tmp_path / "report.json"
    assert command("embedding", "--out", str(out)) == 1
    (row,) = json.loads(out.read_text())["rows"]
    assert row["words"] == "not: every bit the same" and row["device"] == 1 and row["kernels"] == 0, row
    printed = capsys.readouterr().out
    assert "0 of 1 are as they should be" in printed and str(out) in printed


def test_without_a_card(command, capsys, monkeypatch):
    monkeypatch.setattr(backend, "NODES", Path("/nowhere"))
    assert command("embedding").startswith("No Tenstorrent card was found")
    assert command("nonsense") == 2 and "unknown: nonsense; there are" in capsys.readouterr().err
