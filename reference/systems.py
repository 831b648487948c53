"""The README's plot: what an edit takes on each system, by the planner. Minutes on TT-NN's mock device, without a card.

python -m reference.systems
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from tt_flux_kontext.metadata import save
from tt_flux_kontext.planner.plan import EVERYWHERE, PROGRESS, Plan, Request, plan_everywhere
from tt_flux_kontext.planner.systems import SYSTEMS

SQUARE = (1024, 1024)
PRECISION = "bfp8_mixed"  # fits them all
_ONE, _SEVERAL, _ROOM = "#2f6db3", "#e0882d", "#dfe3e8"
_INCH = 110  # pixels


def plot(alone: Sequence[Plan], several: Sequence[Plan]) -> Figure:
    """Seconds, edits a minute and memory by system, side by side.

    Args:
        alone: an edit over all chips, of each system.
        several: edits side by side, of some of the systems.
    """
    at_once = {plan.system: plan for plan in several}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    seconds, rates, memory = figure.subplots(1, 3, sharey=True)
    places = range(len(alone))
    bars = seconds.barh(places, [plan.seconds for plan in alone], color=_ONE)
    seconds.bar_label(bars, fmt="%.1f s", padding=3)
    seconds.set_title("one edit, all chips")

    pairs = [(plan, at_once.get(plan.system)) for plan in alone]
    bars = rates.barh(
        [place - 0.2 * (other is not None) for place, (_, other) in zip(places, pairs)],
        [plan.edits_per_minute for plan in alone],
        height=[0.8 if other is None else 0.4 for _, other in pairs],
        color=_ONE,
        label="one at a time",
    )
    rates.bar_label(bars, fmt="%.1f", padding=3)
    side_by_side = [(place + 0.2, other) for place, (_, other) in zip(places, pairs) if other]
    bars = rates.barh(
        [place for place, _ in side_by_side],
        [plan.edits_per_minute for _, plan in side_by_side],
        height=0.4,
        color=_SEVERAL,
        label="several at once",
    )
    labels = [f"{plan.edits_per_minute:.1f}, {plan.at_once} at once" for _, plan in side_by_side]
    rates.bar_label(bars, labels, padding=3)
    rates.set_title("edits a minute")
    rates.legend(loc="upper right", frameon=False)

    memory.barh(places, [(plan.peak + plan.free) / 1e9 for plan in alone], color=_ROOM, label="there is")
    bars = memory.barh(places, [plan.peak / 1e9 for plan in alone], color=_ONE, label="in use at most")
    memory.bar_label(bars, fmt="%.1f GB", padding=3)
    memory.set_title("DRAM of a chip, one edit")
    memory.legend(loc="upper right", frameon=False)

    seconds.set_yticks(places, [plan.system for plan in alone])
    seconds.invert_yaxis()
    for axes in (seconds, rates, memory):
        axes.margins(x=0.22)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    request = alone[0].request
    height, width = request.size
    figure.suptitle(f"Modelled: {width} x {height} with a reference, {request.steps} steps, {alone[0].precision}")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw systems.png.")
    parser.add_argument("--out", type=Path, default=Path("demo/pictures"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    total = PROGRESS * len(EVERYWHERE)
    try:
        with tqdm(total=total, desc="TT-NN's mock device", leave=False, disable=None) as bar:
            plans = plan_everywhere(Request(SQUARE, [SQUARE], PRECISION), bar.update)
    except RuntimeError as error:
        sys.exit(str(error))
    png = io.BytesIO()
    plot(plans[: len(SYSTEMS)], plans[len(SYSTEMS) :]).savefig(png, dpi=_INCH)
    save(Image.open(png), arguments.out / "systems.png")


if __name__ == "__main__":
    main()
