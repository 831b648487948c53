"""Does an edit fit a system, and how long would it take? Asked of real TT-NN, on its mock device, at full size."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache

from tt_flux_kontext.planner.mock_device import run
from tt_flux_kontext.planner.operations import Operation, Place
from tt_flux_kontext.planner.roofline import CHIPS, calibration, upload_time
from tt_flux_kontext.planner.systems import SINGLE_CHIP, SYSTEMS

STEP = "step"
PROGRESS = 10  # calls of `progress` in a plan
AT_ONCE = {"n300": 2, "t3k": 4, "galaxy": 4, "p300": 2, "p150x4": 4}
"""Edits side by side that systems are good for: one a chip, on the T3K's pairs and on the Galaxy's rings of eight."""

EVERYWHERE = [(system, 1) for system in SYSTEMS] + list(AT_ONCE.items())
"""Systems with one edit over all chips, and then with several at once."""

Split = tuple[int, int]
"""(SP, TP): chips over which an edit's tokens and the transformer's features are split."""


@dataclass(frozen=True)
class Request:
    """An edit to plan with FLUX.1 Kontext [dev].

    Attributes:
        size: (height, width) of the result in pixels.
        references: (height, width) of the picture to edit and of others, as the VAE gets them; none for text to image.
        precision: a name in `PRECISIONS`; None for the most accurate one that fits.
        images: results per prompt.
        text_tokens: of T5.
        steps: of denoising.
        masked: whether the result keeps a part of the first reference, which has its size.
    """

    size: tuple[int, int]
    references: Sequence[tuple[int, int]]
    precision: str | None = None
    images: int = 1
    text_tokens: int = 512
    steps: int = 28
    masked: bool = False


@dataclass(frozen=True)
class PhasePlan:
    """One phase of an edit, or one of its `count` denoising steps, on one of its chips.

    Attributes:
        weights: bytes of DRAM of all weights on the device.
        peak, free: bytes of DRAM in use at most and free at least, as TT-NN's allocator counts.
        l1: bytes of a core's L1 in use at most, as far as TT-NN reports its programs' buffers.
        ops: device operations.
        kernels: that TT-NN compiles for it, and that no phase or edit before it had; of all steps.
        flop: multiplications and additions of the matrix engine.
        traffic: bytes of DRAM read and written.
        link_bytes: bytes that a chip gets from others.
        seconds: modelled, see `roofline`; with those of `upload`.
        communication: of them, in which chips wait for others.
        upload: bytes of weights that come from the host, since there was no room for them to stay.
        first_upload: the same in a process's first edit, which finds none there.
        operations: of the device, in order; not in JSON.
        memory: bytes of DRAM in use at most from the start of each of them to the start of the next; not in JSON.
    """

    name: str
    count: int
    weights: int
    peak: int
    free: int
    l1: int
    ops: int
    kernels: int
    flop: int
    traffic: int
    link_bytes: int
    seconds: float
    communication: float
    upload: int = 0
    first_upload: int = 0
    operations: list[Operation] = field(default_factory=list, repr=False)
    memory: list[int] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Plan:
    """What came out.

    Attributes:
        precision: that was planned with.
        best: the most accurate precision that fits by the table of weights and activations, or None.
        workspaces: bytes beside the weights that the pipeline reserves for each model.
        split: of the transformer; chips that an edit leaves over have other edits.
        refused: why it does not fit, in the pipeline's words; "" when it fits.
        phases: in order; none when refused.
    """

    system: str
    request: Request
    precision: str
    best: str | None
    workspaces: dict[str, int]
    split: Split
    refused: str = ""
    phases: list[PhasePlan] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Modelled time of the edit, in a process that has made one like it before."""
        return self.total("seconds")

    @property
    def first_seconds(self) -> float:
        """The same of a process's first edit. All weights come to the device, from files that are in memory."""
        more = self.total("first_upload") - self.total("upload")
        return self.seconds + upload_time(more, CHIPS[self.system])

    @property
    def peak(self) -> int:
        """Most bytes of a chip's DRAM in use."""
        return max(phase.peak for phase in self.phases)

    @property
    def free(self) -> int:
        """Least bytes of a chip's DRAM that are free."""
        return min(phase.free for phase in self.phases)

    @property
    def at_once(self) -> int:
        """Edits that the system has room for side by side."""
        return math.prod(SYSTEMS[self.system].mesh_shape) // math.prod(self.split)

    @property
    def edits_per_minute(self) -> float:
        return self.at_once * 60 / self.seconds

    @property
    def kernels(self) -> int:
        """That TT-NN compiles before it has made such an edit on this machine."""
        return sum(phase.kernels for phase in self.phases)

    def total(self, figure: str) -> float:
        """The sum over all phases and steps of a figure of `PhasePlan`."""
        return sum(phase.count * getattr(phase, figure) for phase in self.phases)

    def as_dict(self) -> dict:
        """For JSON."""
        modelled = {}
        if self.phases:
            modelled = {
                "seconds": self.seconds,
                "first_seconds": self.first_seconds,
                "kernels": self.kernels,
                "at_once": self.at_once,
            }
        phases = [
            {name: value for name, value in vars(phase).items() if name not in ("operations", "memory")}
            for phase in self.phases
        ]
        fields = asdict(replace(self, phases=[])) | {"phases": phases}
        return fields | modelled | {"modelled": calibration(mesh=self.system not in SINGLE_CHIP)}


def plan(
    system: str,
    requests: Sequence[Request],
    split: Split | None = None,
    at_once: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> list[Plan]:
    """Plans edits, one after the other, in one process on a mock of the system.

    Args:
        system: a name in `systems.SYSTEMS`.
        split: of an edit that takes all chips; by default the pipeline's.
        at_once: edits side by side, each on an equal part of the chips.
        progress: called after every phase.

    Raises:
        ValueError: the chips can't be split so.
        MockError: TT-NN refuses a call.
    """
    mesh = _mesh(system, split, at_once)
    edits = []
    for request in requests:
        edit = asdict(request)
        del edit["steps"]  # two of them are looked at, the others are like the second
        edits.append(edit)
    plans, phases = [], []
    job = {"system": system, "mesh": mesh, "at_once": at_once, "split": split, "edits": edits}
    for line in run(system, "tt_flux_kontext.planner.worker", job):
        progress()
        if "precision" in line:
            request, phases = requests[len(plans)], []
            line["split"] = tuple(line["split"])
            plans.append(Plan(system, request, **line, phases=phases))
        elif "refused" in line:
            plans[-1] = Plan(**(vars(plans[-1]) | line))
        elif "uploads" in line:
            for i, phase in enumerate(phases):
                size = line["uploads"].get(phase.name, 0)
                seconds = phase.seconds + upload_time(size, CHIPS[system])
                phases[i] = replace(phase, upload=size, seconds=seconds)
        elif phases and phases[-1].name == line["name"] == STEP:
            first = phases.pop()
            line |= {"peak": max(first.peak, line["peak"]), "free": min(first.free, line["free"])}
            line |= {"l1": max(first.l1, line["l1"]), "kernels": first.kernels + line["kernels"]}
            phases.append(_phase(line, request.steps))
        else:
            phases.append(_phase(line))
    return plans


def _phase(line: dict, count: int = 1) -> PhasePlan:
    """Of what the worker wrote."""
    operations = [
        Operation(**each | {"inputs": _places(each["inputs"]), "outputs": _places(each["outputs"])})
        for each in line["operations"]
    ]
    return PhasePlan(**line | {"operations": operations}, count=count)


def _places(places: list[dict]) -> tuple[Place, ...]:
    return tuple(_place(**each | {"shape": tuple(each["shape"])}) for each in places)


_place = cache(Place)  # thousands of operations have a few hundred different ones


def _mesh(system: str, split: Split | None, at_once: int) -> tuple[int, int]:
    """(rows, columns) of the mesh to open. Raises `ValueError` where there is none."""
    forms = CHIPS[system].mesh.meshes
    chips = math.prod(forms[0])
    if chips % at_once:
        raise ValueError(f"{system} has {chips} chips: {at_once} edits at a time can't have equal parts of them.")
    if split is None:
        return forms[0]
    for form in forms:
        if sorted(form) == sorted(split):
            return form
    known = " or ".join(f"{rows} x {columns}" for rows, columns in forms)
    raise ValueError(f"{system} is a mesh of {known} chips, which can't be split {split[0]} x {split[1]}.")


def plan_everywhere(request: Request, progress: Callable[[], None]) -> list[Plan]:
    """The same edit for each of EVERYWHERE, as many plans at a time as there are processors."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        found = pool.map(lambda job: plan(job[0], [request], at_once=job[1], progress=progress)[0], EVERYWHERE)
        return list(found)
