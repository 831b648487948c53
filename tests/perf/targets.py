"""What an edit takes on each system, held in targets.json, and the command that renews it and PERF.md.

    python -m tests.perf.targets                               # plans anew, on TT-NN's mock device
    python -m tests.perf.targets --measured out/measured*.json # takes over what a card took

The edit: FLUX.1 Kontext [dev], 1024 x 1024 with a reference of that size, 28 steps. On a mesh all figures are of one
chip, and a key such as "t3k, 4 at once" is for several edits side by side.
"""

import argparse
import json
import os
from pathlib import Path

from tt_flux_kontext.planner.plan import EVERYWHERE, PhasePlan, Plan, Request, plan
from tt_flux_kontext.planner.systems import SYSTEMS

PATH = Path(__file__).with_name("targets.json")
PERF_MD = Path(__file__).parents[2] / "PERF.md"
RENEW = "python -m tests.perf.targets"
# On one chip the most accurate one that fits; on several the one for speed.
PRECISIONS = dict.fromkeys(SYSTEMS, "bfp8_mixed") | {"p100": "bf16", "p150": "bf16"}
JOBS = {f"{system}, {count} at once" if count > 1 else system: (system, count) for system, count in EVERYWHERE}
"""By key: what is planned, a system and how many edits side by side."""

SQUARE = (1024, 1024)
STEPS = 28

STAGES = ("clip", "t5", "vae encoder", "modulation", "step", "vae decoder")
EDIT = "edit"  # all of it: the largest peak, and the sum of the rest

# Of each figure: what it is, and how far it may be off in either direction. An improvement is to be written down too.
FIGURES = {
    "ops": ("device operations", 0.0),
    "traffic": ("bytes of DRAM read and written", 0.0),
    "link_bytes": ("bytes that a chip gets from others", 0.0),
    "upload": ("bytes of weights that a chip gets from the host", 0.0),
    "peak": ("bytes of DRAM in use at most", 0.01),
    "seconds": ("modelled seconds", 0.01),
    "measured": ("measured seconds", 0.10),
}
SUMS = ("ops", "traffic", "link_bytes", "upload")  # over the phases of an edit


_PERF_MD = f"""# Performance

FLUX.1 Kontext [dev], batch 1, 1024 x 1024 with a reference picture of that size, {STEPS} steps. Nothing has run on a
card yet: modelled times are the planner's, of an edit that is not its process's first, uploads of weights included.
[tt_flux_kontext/planner/README.md](tt_flux_kontext/planner/README.md) says how far off they were where public figures
could be compared.

| system | precision | Sec/Image, modelled | Sec/Image, measured | step, modelled (ms) | images a minute, modelled |
|---|---|---|---|---|---|
%s

`pytest tests/perf -k measured` measures on the card that is there: stages as JSON in `out/`, which
`python -m tests.perf.targets --measured FILE` makes the targets, and the CSV that tt-metal's CI reads. The markers are
`models_performance_bare_metal` (a whole edit) and `models_device_performance_bare_metal` (a step).
`python -m tests.perf.targets` writes this page.
"""


def load() -> dict[str, dict]:
    """By key of JOBS: `precision`; `planned` {stage: {figure: value}}; `measured` {stage: seconds} if it was."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def square_plan(key: str) -> Plan:
    """The edit of a key of JOBS."""
    system, at_once = JOBS[key]
    (edit,) = plan(system, [Request(SQUARE, [SQUARE], PRECISIONS[system], steps=STEPS)], at_once=at_once)
    return edit


def figures(edit: Plan) -> dict[str, dict]:
    """{stage: {figure: value}} of a plan."""
    if edit.refused:
        raise RuntimeError(f"{edit.system}: {edit.refused}")
    stages = {phase.name: phase for phase in edit.phases}
    of_stages = {name: _figures(stages[name], stages[name].seconds) for name in STAGES}
    return of_stages | {EDIT: _total(edit)}


def _figures(phase: PhasePlan, seconds: float) -> dict:
    return {name: getattr(phase, name) for name in SUMS} | {"peak": phase.peak, "seconds": _rounded(seconds)}


def _total(edit: Plan) -> dict:
    return {name: edit.total(name) for name in SUMS} | {"peak": edit.peak, "seconds": _rounded(edit.seconds)}


def off_target(where: str, targets: dict[str, float], found: dict[str, float]) -> list[str]:
    """A line for each figure that is off its target, or has none; keys are those of FIGURES."""
    lines = []
    for key, is_ in found.items():
        what, margin = FIGURES[key]
        was = targets.get(key)
        if was is None:
            lines.append(f"{where}: no target for {what}, which is {is_}")
        elif abs(is_ - was) > margin * was:
            change = f"{100 * (is_ / was - 1):+.2f} %" if was else "from none"
            lines.append(f"{where}: {what}: was {was}, is {is_} ({change}, allowed are {100 * margin:g} %)")
    return lines


def renew() -> None:
    """Plans anew, and keeps what was measured."""
    targets = load()
    for key in JOBS:
        edit = square_plan(key)
        kept = targets.get(key, {}).get("measured")
        targets[key] = {"precision": edit.precision, "planned": figures(edit)}
        targets[key] |= {"measured": kept} if kept else {}
    _write({key: targets[key] for key in JOBS})


def take_over(reports: list[Path]) -> None:
    """Makes what a card took (`measured.report`) the target.

    Raises:
        ValueError: a figure that was not measured on a card, or is of a system without targets.
    """
    targets = load()
    for report in reports:
        for row in json.loads(report.read_text()):
            if row["kind"] != "measured" or row["system"] not in targets:
                raise ValueError(f"{report}: not measured on a card that has targets: {row}")
            targets[row["system"]].setdefault("measured", {})[row["stage"]] = _rounded(row["seconds"])
    _write(targets)


def perf_md(targets: dict[str, dict]) -> str:
    """PERF.md, in the form that maintainers of tt-metal expect; of what `load` gives."""
    rows = []
    for key, target in targets.items():
        _, at_once = JOBS[key]
        planned, measured = target["planned"], target.get("measured", {})
        seconds = planned[EDIT]["seconds"]
        cells = key, target["precision"], f"{seconds:.1f}", f"{measured[EDIT]:.1f}" if EDIT in measured else ""
        cells += f"{1000 * planned['step']['seconds']:.0f}", f"{60 * at_once / seconds:.1f}"
        rows.append(f"| {' | '.join(cells)} |")
    return _PERF_MD % "\n".join(rows)


def _write(targets: dict) -> None:
    new = PATH.with_suffix(".json.new")
    new.write_text(json.dumps(targets, indent=2) + "\n")
    os.replace(new, PATH)
    PERF_MD.write_text(perf_md(targets))


def _rounded(seconds: float) -> float:
    """To four digits: well within the margins, and short in a diff."""
    return float(f"{seconds:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Renews tests/perf/targets.json.")
    parser.add_argument("--measured", nargs="+", type=Path, metavar="FILE", help="reports of the tests on a card")
    arguments = parser.parse_args()
    if arguments.measured:
        take_over(arguments.measured)
    else:
        renew()


if __name__ == "__main__":
    main()
