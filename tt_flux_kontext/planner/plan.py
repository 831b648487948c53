"""Does an edit fit a system, and how long would it take? Asked of real TT-NN, on its mock device, at full size."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from tt_flux_kontext.planner.mock_device import run
from tt_flux_kontext.planner.roofline import calibration

STEP = "step"


@dataclass(frozen=True)
class Request:
    """An edit to plan with FLUX.1 Kontext [dev].

    Attributes:
        size: (height, width) of the result in pixels.
        reference: (height, width) of the picture to edit as the VAE gets it; None for text to image.
        precision: a name in `PRECISIONS`; None for the most accurate one that fits.
        images: results per prompt.
        text_tokens: of T5.
        steps: of denoising.
    """

    size: tuple[int, int]
    reference: tuple[int, int] | None
    precision: str | None = None
    images: int = 1
    text_tokens: int = 512
    steps: int = 28


@dataclass(frozen=True)
class PhasePlan:
    """One phase of an edit, or one of its `count` denoising steps.

    Attributes:
        weights: bytes of DRAM of all weights on the device.
        peak, free: bytes of DRAM in use at most and free at least, as TT-NN's allocator counts.
        l1: bytes of a core's L1 in use at most, as far as TT-NN reports its programs' buffers.
        ops: device operations.
        flop: multiplications and additions of the matrix engine.
        traffic: bytes of DRAM read and written.
        seconds: modelled, see `roofline`.
    """

    name: str
    count: int
    weights: int
    peak: int
    free: int
    l1: int
    ops: int
    flop: int
    traffic: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What came out.

    Attributes:
        precision: that was planned with.
        best: the most accurate precision that fits by the table of weights and activations, or None.
        workspaces: bytes beside the weights that the pipeline reserves for each model.
        refused: why it does not fit, in the pipeline's words; "" when it fits.
        phases: in order; none when refused.
    """

    system: str
    request: Request
    precision: str
    best: str | None
    workspaces: dict[str, int]
    refused: str = ""
    phases: list[PhasePlan] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Modelled time of the edit; weights are on the device already."""
        return sum(phase.count * phase.seconds for phase in self.phases)

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self) | {"seconds": self.seconds, "modelled": calibration()}


def plan(system: str, requests: Sequence[Request], progress: Callable[[], None] = lambda: None) -> list[Plan]:
    """Plans edits, one after the other, in one process on a mock of the system.

    Args:
        system: a name in `systems.SINGLE_CHIP`.
        progress: called after every phase.

    Raises:
        MockError: TT-NN refuses a call.
    """
    edits = []
    for request in requests:
        edit = asdict(request)
        del edit["steps"]  # two of them are looked at, the others are like the second
        edits.append(edit)
    plans, phases = [], []
    for line in run(system, "tt_flux_kontext.planner.worker", {"system": system, "edits": edits}):
        progress()
        if "precision" in line:
            request, phases = requests[len(plans)], []
            plans.append(Plan(system, request, **line, phases=phases))
        elif "refused" in line:
            plans[-1] = Plan(**(vars(plans[-1]) | line))
        elif phases and phases[-1].name == line["name"] == STEP:
            first = phases.pop()
            line |= {"peak": max(first.peak, line["peak"]), "free": min(first.free, line["free"])}
            phases.append(PhasePlan(**line | {"l1": max(first.l1, line["l1"])}, count=request.steps))
        else:
            phases.append(PhasePlan(**line, count=1))
    return plans


def plan_systems(systems: Sequence[str], request: Request, progress: Callable[[], None]) -> list[Plan]:
    """The same edit on several systems, as many at a time as there are processors."""
    with ThreadPoolExecutor(max_workers=min(len(systems), os.cpu_count() or 1)) as pool:
        found = pool.map(lambda system: plan(system, [request], progress)[0], systems)
        return list(found)


def table(plan: Plan) -> str:
    """For people."""
    request = plan.request
    height, width = request.size
    title = f"{plan.system}: {width} x {height}, {request.steps} steps, {plan.precision}"
    if plan.refused:
        return f"{title}\n{plan.refused}"
    lines = [
        title,
        f"{'phase':<22}{'weights':>10}{'peak DRAM':>11}{'free':>10}{'L1/core':>10}{'device ops':>12}"
        f"{'TFLOP':>9}{'moved':>11}{'modelled':>11}",
    ]
    for phase in plan.phases:
        name = f"{phase.name}, each of {phase.count}" if phase.count > 1 else phase.name
        lines.append(
            f"{name:<22}{phase.weights / 1e9:>7.2f} GB{phase.peak / 1e9:>8.2f} GB{phase.free / 1e9:>7.2f} GB"
            f"{phase.l1 / 1e6:>7.2f} MB{phase.ops:>12}{phase.flop / 1e12:>9.2f}{phase.traffic / 1e9:>8.2f} GB"
            f"{phase.seconds:>9.3f} s"
        )
    total = {
        name: sum(phase.count * getattr(phase, name) for phase in plan.phases) for name in ("ops", "flop", "traffic")
    }
    peak, free = max(phase.peak for phase in plan.phases), min(phase.free for phase in plan.phases)
    lines.append(
        f"{'edit':<22}{'':>10}{peak / 1e9:>8.2f} GB{free / 1e9:>7.2f} GB{'':>10}{total['ops']:>12}"
        f"{total['flop'] / 1e12:>9.0f}{total['traffic'] / 1e9:>8.0f} GB{plan.seconds:>9.1f} s"
    )
    lines.append(f"It fits. The most accurate precision that does: {plan.best}.")
    return "\n".join(lines)
