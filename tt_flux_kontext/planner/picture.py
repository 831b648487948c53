"""A plan as a picture: a chip's memory over an edit, and its time by kind of operation."""

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tt_flux_kontext.planner.operations import Operation
from tt_flux_kontext.planner.plan import PhasePlan, Plan
from tt_flux_kontext.planner.roofline import CHIPS, Chip, time, upload_time
from tt_flux_kontext.planner.tables import title

UPLOAD = "upload"
KINDS = {
    "matmul": "#2f6db3",
    "attention": "#e0882d",
    "convolution": "#4f9d69",
    "norm": "#8d6bb5",
    "elementwise": "#d9b93b",
    "data movement": "#8b5e4b",
    "collectives": "#c4504f",
    UPLOAD: "#bcc7d6",
}
"""Kinds of work, each with its colour."""

_BY_NAME = {
    **dict.fromkeys(("Norm", "norm", "Reduce"), "norm"),
    **dict.fromkeys(("Unary", "Binary", "Ternary"), "elementwise"),
    "Softmax": "attention",
}
_WEIGHTS, _KEPT, _ACTIVATIONS, _LIMIT = KINDS[UPLOAD], "#8a9bb3", "#33506f", "#b03a2e"
_NARROWEST = 0.07  # share of the width that shows a phase's name
_SMALL = 9  # points
_INCH = 110  # pixels


def kind(operation: Operation) -> str:
    """One of KINDS."""
    if operation.only_moves:
        return "collectives"
    if operation.kind != "other":
        return operation.kind
    return next((found for part, found in _BY_NAME.items() if part in operation.name), "data movement")


def time_by_kind(phase: PhasePlan, chip: Chip) -> dict[str, float]:
    """Modelled seconds of a phase in a process's first edit, of one step if there are several."""
    seconds = dict.fromkeys(KINDS, 0.0)
    seconds[UPLOAD] = upload_time(phase.first_upload, chip)
    for operation in phase.operations:
        seconds[kind(operation)] += time([operation], chip).seconds
    return seconds


def draw(plan: Plan) -> Figure:
    """A process's first edit: memory above, with a panel for each phase, as wide as it takes long, and time below."""
    chip = CHIPS[plan.system]
    phases = [phase for phase in plan.phases if phase.operations or phase.first_upload]
    times = [time_by_kind(phase, chip) for phase in phases]
    figure = Figure(figsize=(11, 7.5), dpi=_INCH, layout="constrained")
    figure.suptitle(
        f"{title(plan)}\nA process's first edit takes {plan.first_seconds:.1f} s: modelled, not measured", fontsize=11
    )
    above, below = figure.subfigures(2, 1, height_ratios=(5, 4))

    lengths = [sum(seconds.values()) for seconds in times]
    widths = [max(length, _NARROWEST * sum(lengths)) for length in lengths]
    panels = above.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, phase, length in zip(panels, phases, lengths):
        _draw_memory(axes, phase, length, chip)
    panels[0].set_ylim(0, 1.06 * (phases[0].peak + phases[0].free))
    panels[0].yaxis.set_major_formatter(lambda size, _: f"{size / 1e9:.0f} GB")
    panels[0].set_ylabel("DRAM of a chip")
    for axes in panels[1:]:
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
    above.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=_SMALL
    )

    by_phase, by_kind = below.subplots(1, 2, width_ratios=(2, 1))
    _draw_phases(by_phase, phases, times)
    _draw_kinds(by_kind, phases, times)
    return figure


def _draw_memory(axes: Axes, phase: PhasePlan, length: float, chip: Chip) -> None:
    """First the weights come from the host, then the operations run."""
    upload = upload_time(phase.first_upload, chip)
    starts = list(accumulate((time([operation], chip).seconds for operation in phase.operations), initial=upload))
    there, limit = phase.weights - phase.first_upload, phase.peak + phase.free
    kept = min((size for size in phase.memory if size >= phase.weights), default=phase.weights)
    in_use = [max(size, kept) for size in phase.memory] + [kept]
    axes.fill_between([0, upload, length], [there, phase.weights, phase.weights], color=_WEIGHTS, label="weights")
    axes.fill_between([upload, length], phase.weights, kept, color=_KEPT, label="kept through the phase")
    axes.fill_between(starts, kept, in_use, step="post", color=_ACTIVATIONS, linewidth=0.5, label="activations")
    axes.axhline(limit, color=_LIMIT, linestyle="--", linewidth=1.2, label=f"all there is, {limit / 1e9:.2f} GB")
    axes.annotate(
        f"{max(in_use) / 1e9:.1f} GB",
        (0.5, max(in_use)),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="center",
        fontsize=_SMALL,
    )
    axes.set_xlim(0, length)
    axes.set_xticks([])
    axes.set_xlabel(f"{_name(phase).replace(' ', chr(10), 1)}\n{_seconds(length)}", fontsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_phases(axes: Axes, phases: Sequence[PhasePlan], times: Sequence[dict[str, float]]) -> None:
    places = range(len(phases))
    ends = [0.0] * len(phases)
    for name, colour in KINDS.items():
        parts = [seconds[name] for seconds in times]
        axes.barh(places, parts, left=ends, color=colour)
        ends = [end + part for end, part in zip(ends, parts)]
    for place, end in zip(places, ends):
        axes.annotate(_seconds(end), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=_SMALL)
    axes.set_yticks(places, [_name(phase) for phase in phases], fontsize=_SMALL)
    axes.set_title("time of each phase", fontsize=_SMALL + 1)
    _bars_alone(axes)


def _draw_kinds(axes: Axes, phases: Sequence[PhasePlan], times: Sequence[dict[str, float]]) -> None:
    totals = {name: sum(phase.count * seconds[name] for phase, seconds in zip(phases, times)) for name in KINDS}
    totals = {name: total for name, total in totals.items() if total}
    places = range(len(totals))
    bars = axes.barh(places, totals.values(), color=[KINDS[name] for name in totals])
    axes.bar_label(bars, [_seconds(total) for total in totals.values()], padding=4, fontsize=_SMALL)
    axes.set_yticks(places, list(totals), fontsize=_SMALL)
    axes.set_title("time of the edit", fontsize=_SMALL + 1)
    _bars_alone(axes)


def _bars_alone(axes: Axes) -> None:
    """From top to bottom, with room for what stands beside them."""
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _name(phase: PhasePlan) -> str:
    return f"{phase.name}, one of {phase.count}" if phase.count > 1 else phase.name


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.3f} s"
