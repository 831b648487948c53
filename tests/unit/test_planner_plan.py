"""Plans for meshes: which chips an edit takes, what is printed, and what is refused."""

from dataclasses import replace

import pytest

from tt_flux_kontext import cli
from tt_flux_kontext.planner.plan import PhasePlan, Plan, Request
from tt_flux_kontext.planner.tables import comparison, table, title

GB = 10**9
SQUARE = (1024, 1024)


def planned(system: str, split: tuple[int, int], refused: str = "") -> Plan:
    """An edit of half a minute, of which chips wait for each other ten seconds; a chip gets 2 GB, at first 18 GB."""
    phases = [
        PhasePlan("clip", 1, 2 * GB, 3 * GB, 10 * GB, 10**6, 259, 90, 10**12, GB, 0, 2.0, 0.0, 2 * GB, 18 * GB),
        PhasePlan("step", 28, 9 * GB, 11 * GB, 2 * GB, 10**6, 1170, 110, 10**12, GB, 3 * GB, 1.0, 10 / 28),
    ]
    request = Request(SQUARE, [SQUARE])
    return Plan(system, request, "bfp8_mixed", "bf16", {}, split, refused, [] if refused else phases)


def test_edits_side_by_side():
    assert planned("t3k", (4, 2)).at_once == 1 and planned("t3k", (4, 2)).edits_per_minute == pytest.approx(2)
    assert planned("galaxy", (8, 1)).at_once == 4 and planned("galaxy", (8, 1)).edits_per_minute == pytest.approx(8)


def test_tables_of_meshes_have_what_goes_over_links():
    lines = table(planned("t3k", (4, 2))).splitlines()
    assert lines[0] == "t3k: 1024 x 1024, 28 steps, bfp8_mixed on 8 chips: tokens over 4, features over 2"
    assert lines[1].endswith("modelled  over links    waiting")
    assert lines[3].startswith("step, each of 28") and lines[3].endswith("1.000 s     3.00 GB    0.357 s")
    assert lines[4].startswith("edit ") and lines[4].endswith("2.00 GB     30.0 s       84 GB     10.0 s")
    assert table(planned("n150", (1, 1))).splitlines()[1].endswith("moved     upload   modelled")


def test_titles_say_what_is_not_usual():
    request = Request(SQUARE, [SQUARE] * 2, masked=True)
    assert title(replace(planned("n150", (1, 1)), request=request)).endswith("bfp8_mixed, 2 references, with a mask")
    request = Request(SQUARE, [])
    assert title(replace(planned("n150", (1, 1)), request=request)).endswith("bfp8_mixed, no references")


def test_a_first_edit_has_all_weights_to_upload():
    """A host copies for one chip after the other, 12.8 GB/s in all."""
    for system, chips, size in (("n150", 1, "18.0 GB."), ("t3k", 8, "18.0 GB a chip.")):
        plan = planned(system, (chips, 1))
        assert plan.first_seconds == pytest.approx(30 + chips * 16 / 12.8)
        (line,) = [line for line in table(plan).splitlines() if "first edit" in line]
        assert f"takes {plan.first_seconds:.1f} s" in line and line.endswith(size)
        assert plan.as_dict()["first_seconds"] == plan.first_seconds


def test_systems_side_by_side():
    lines = comparison(
        [planned("t3k", (4, 2)), planned("t3k", (2, 1)), planned("n300", (1, 1), "too much")]
    ).splitlines()
    assert lines[1].endswith("2.00 GB   1.000 s   30.0 s   40.0 s                2.00")
    assert lines[2].endswith("8.00, 4 at once") and lines[3].endswith("does not fit")


@pytest.mark.parametrize(
    "arguments,complaint",
    [
        (["--system", "t3k", "--split", "3"], "two numbers of chips, such as 4,2, not '3'"),
        (["--system", "t3k", "--split", "4,0"], "two numbers of chips, such as 4,2, not '4,0'"),
        (["--all-systems", "--split", "2,1"], "--split and --at-once are of one --system"),
        (["--all-systems", "--report", "folder"], "--report is of one --system"),
        (["--system", "t3k", "--at-once", "0"], "--at-once: a whole number of at least 1, not '0'"),
        (["--system", "t3k", "--at-once", "2", "--split", "2,1"], "not allowed with argument"),
        (["--references", "-1"], "--references: a whole number of at least 0, not '-1'"),
        (
            ["--references", "0", "--mask"],
            "--mask is of a picture, which is a reference: it takes --references 1 or more",
        ),
        (["--system", "t9k"], "invalid choice: 't9k'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, complaint, capsys):
    assert cli.main(["plan", *arguments]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["--split", "3,1"], "t3k is a mesh of 2 x 4 or 1 x 8 chips, which can't be split 3 x 1."),
        (["--at-once", "3"], "t3k has 8 chips: 3 edits at a time can't have equal parts of them."),
    ],
)
def test_what_no_chips_can_do_is_refused_in_a_sentence(arguments, sentence, capsys):
    assert cli.main(["plan", "--system", "t3k", *arguments]) == 1
    assert capsys.readouterr().err == f"tt-flux-kontext plan: {sentence}\n"
