"""Plans as text, for people."""

from collections.abc import Sequence

from tt_flux_kontext.planner.plan import Plan
from tt_flux_kontext.planner.systems import SINGLE_CHIP


def title(plan: Plan) -> str:
    """What was planned, and on what."""
    height, width = plan.request.size
    line = f"{plan.system}: {width} x {height}, {plan.request.steps} steps, {plan.precision}"
    references = len(plan.request.references)
    if references != 1:
        line += f", {references or 'no'} references"
    if plan.request.masked:
        line += ", with a mask"
    return line if plan.system in SINGLE_CHIP else f"{line} on {_split(plan)}"


def table(plan: Plan) -> str:
    """A plan by phases. On meshes all figures are of one chip."""
    mesh = plan.system not in SINGLE_CHIP
    if plan.refused:
        return f"{title(plan)}\n{plan.refused}"
    head = (
        f"{'phase':<22}{'weights':>10}{'peak DRAM':>11}{'free':>10}{'L1/core':>10}{'device ops':>12}"
        f"{'TFLOP':>9}{'moved':>11}{'upload':>11}{'modelled':>11}"
    )
    lines = [title(plan), head + (f"{'over links':>12}{'waiting':>11}" if mesh else "")]
    for phase in plan.phases:
        name = f"{phase.name}, each of {phase.count}" if phase.count > 1 else phase.name
        line = (
            f"{name:<22}{phase.weights / 1e9:>7.2f} GB{phase.peak / 1e9:>8.2f} GB{phase.free / 1e9:>7.2f} GB"
            f"{phase.l1 / 1e6:>7.2f} MB{phase.ops:>12}{phase.flop / 1e12:>9.2f}{phase.traffic / 1e9:>8.2f} GB"
            f"{phase.upload / 1e9:>8.2f} GB{phase.seconds:>9.3f} s"
        )
        lines.append(line + (f"{phase.link_bytes / 1e9:>9.2f} GB{phase.communication:>9.3f} s" if mesh else ""))
    line = (
        f"{'edit':<22}{'':>10}{plan.peak / 1e9:>8.2f} GB{plan.free / 1e9:>7.2f} GB{'':>10}{plan.total('ops'):>12}"
        f"{plan.total('flop') / 1e12:>9.0f}{plan.total('traffic') / 1e9:>8.0f} GB{plan.total('upload') / 1e9:>8.2f} GB"
        f"{plan.seconds:>9.1f} s"
    )
    if mesh:
        line += f"{plan.total('link_bytes') / 1e9:>9.0f} GB{plan.total('communication'):>9.1f} s"
    lines.append(line)
    lines.append(
        f"The first edit of a process takes {plan.first_seconds:.1f} s, since all weights come to the device: "
        f"{plan.total('first_upload') / 1e9:.1f} GB{' a chip' if mesh else ''}."
    )
    lines.append(
        f"The first one on a machine compiles {plan.kernels} kernels, whose time is in no figure; TT-NN keeps them."
    )
    lines.append(f"It fits. The most accurate precision that does: {plan.best}.")
    return "\n".join(lines)


def comparison(plans: Sequence[Plan]) -> str:
    """A line for each plan."""
    lines = [
        f"{'system':<9}{'an edit takes':<41}{'precision':<12}{'free':>9}{'step':>10}{'edit':>9}{'first':>9}"
        f"{'edits a minute':>20}"
    ]
    for plan in plans:
        line = f"{plan.system:<9}{_split(plan):<41}{plan.precision:<12}"
        if plan.refused:
            lines.append(line + "does not fit")
            continue
        step = max(plan.phases, key=lambda phase: phase.count).seconds
        rate = f"{plan.edits_per_minute:.2f}" + (f", {plan.at_once} at once" if plan.at_once > 1 else "")
        line += f"{plan.free / 1e9:>6.2f} GB{step:>8.3f} s{plan.seconds:>7.1f} s"
        lines.append(f"{line}{plan.first_seconds:>7.1f} s{rate:>20}")
    return "\n".join(lines)


def _split(plan: Plan) -> str:
    """The chips of an edit, in words."""
    sp, tp = plan.split
    ways = [f"{what} over {chips}" for what, chips in (("tokens", sp), ("features", tp)) if chips > 1]
    return f"{sp * tp} chips: {', '.join(ways)}" if ways else "1 chip"
