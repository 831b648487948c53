"""Time of an edit on the device at hand: by stage, from its phases, and of a step alone.

Both are wall-clock times between points at which the host waited for the device. The host's own work counts where the
device has to wait for it. They are not a profiler's figures.
"""

import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.perf.targets import EDIT
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.edit import Editor, Phase
from tt_flux_kontext.request import Edit

OUT = Path(__file__).parents[2] / "out"
STEP = "step"
DEVICE_STEP = "device step"  # the median of the steps, where `step` is their mean within an edit


def edit_seconds(editor: Editor, edit: Edit) -> dict[str, float]:
    """Seconds of each stage, `step` for one of the steps, and of the whole `edit`.

    The edit runs twice and the second run counts: in the first one TT-NN compiles its programs. Models that the device
    has no room for are placed anew in the second run too.
    """
    _phases(editor, edit, decode=True)
    times = defaultdict(list)
    for name, seconds in _phases(editor, edit, decode=True):
        times[name].append(seconds)
    stages = {name: sum(seconds) / len(seconds) for name, seconds in times.items()}
    return stages | {EDIT: sum(map(sum, times.values()))}


def step_seconds(editor: Editor, edit: Edit) -> dict[str, float]:
    """Seconds of a denoising step, the median of all but the first one."""
    steps = [seconds for name, seconds in _phases(editor, edit, decode=False) if name == STEP]
    return {DEVICE_STEP: median(steps[1:])}


def _phases(editor: Editor, edit: Edit, decode: bool) -> list[tuple[str, float]]:
    """Names and seconds."""
    phases, start = [], time.perf_counter()
    for event in editor.run([replace(edit, decode=decode)]):
        ttnn.synchronize_device(editor.device)
        begun, start = start, time.perf_counter()
        if isinstance(event, Phase):
            phases.append((event.name, start - begun))
        elif isinstance(event[0], Exception):
            raise event[0]
    return phases


def system_name() -> str:
    """What TT-NN calls the machine that it runs on, in the planner's words: n150, p150x4, ..."""
    return ttnn.cluster.get_cluster_type().name.lower().replace("_", "")


def report(file: str, system: str, seconds: dict[str, float]) -> str:
    """The figures as JSON, written to the folder `out` too."""
    rows = [
        {"system": system, "stage": stage, "seconds": value, "kind": "measured"} for stage, value in seconds.items()
    ]
    text = json.dumps(rows, indent=2)
    OUT.mkdir(exist_ok=True)
    (OUT / file).write_text(text + "\n")
    return text
