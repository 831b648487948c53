"""Time of an edit on the device at hand: by stage, from its phases, and of a step alone.

Both are wall-clock times between points at which the host waited for the device. The host's own work counts where the
device has to wait for it. They are not a profiler's figures.
"""

import json
import math
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
MODEL = "flux1_kontext_dev"
FIRST_EDIT = "first edit"
DEVICE_STEP = "device step"  # the median of the steps, where `step` is their mean within an edit


def edit_seconds(editor: Editor, edit: Edit) -> dict[str, float]:
    """Seconds of each stage, `step` for one of the steps, of the whole `edit`, and of the `first edit`.

    The edit runs twice and the second run counts: in the first one TT-NN compiles its programs. Models that the device
    has no room for are placed anew in the second run too.
    """
    first = sum(seconds for _, seconds in _phases(editor, edit, decode=True))
    times = defaultdict(list)
    for name, seconds in _phases(editor, edit, decode=True):
        times[name].append(seconds)
    stages = {name: sum(seconds) / len(seconds) for name, seconds in times.items()}
    return stages | {EDIT: sum(map(sum, times.values())), FIRST_EDIT: first}


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


def write_perf_csv(folder: Path, setting: str, first: float, second: float, expected: float, batch: int = 1) -> Path:
    """perf_MODEL_SETTING_DATE.csv, as `prep_perf_report` in tt-metal's models/perf/perf_utils.py writes it.

    Args:
        first, second: seconds of two runs, of which the first one compiles the programs.
        expected: seconds of the second one; there is no model of the first.
    """
    row = {
        "Model": MODEL,
        "Setting": setting,
        "Batch": f"{batch}",
        "First Run (sec)": f"{first:.2f}",
        "Second Run (sec)": f"{second:.2f}",
        "Compile Time (sec)": f"{first - second:.2f}",
        "Expected Compile Time (sec)": f"{math.nan:.2f}",
        "Inference Time (sec)": f"{second:.4f}",
        "Expected Inference Time (sec)": f"{expected:.4f}",
        "Throughput (batch*inf/sec)": f"{batch / second:.4f}",
        "Inference Time CPU (sec)": "unknown",
        "Throughput CPU (batch*inf/sec)": "unknown",
    }
    folder.mkdir(exist_ok=True)
    file = folder / f"perf_{MODEL}_{setting}_{time.strftime('%Y_%m_%d')}.csv"
    file.write_text(f"{', '.join(row)}\n{', '.join(row.values())}\n")
    return file


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
