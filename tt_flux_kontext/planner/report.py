"""A plan as files: its operations as TT-NN's profiler lists those that it measures, and a picture."""

import csv
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tt_flux_kontext.planner.operations import TILE, Place
from tt_flux_kontext.planner.plan import Plan
from tt_flux_kontext.planner.roofline import CHIPS, LAUNCH, time
from tt_flux_kontext.planner.systems import SYSTEMS

OPERATIONS = "ops_perf_results_modelled.csv"  # tools look for files of the profiler by the first three words
PICTURE = "modelled_edit.png"

# Those of the profiler's columns that a model can fill, as they are called in TT-NN 0.81.1.
_COLUMNS = (
    "OP CODE",
    "OP TYPE",
    "GLOBAL CALL COUNT",
    "DEVICE ID",
    "DEVICE ARCH",
    "ATTRIBUTES",
    "MATH FIDELITY",
    "CORE COUNT",
    "AVAILABLE WORKER CORE COUNT",
    "HOST START TS",
    "OP TO OP LATENCY [ns]",
    "DEVICE KERNEL DURATION [ns]",
)
_DIMENSIONS = [f"{name}_PAD[LOGICAL]" for name in "WZYX"]
_TENSOR_COLUMNS = (*_DIMENSIONS, "LAYOUT", "DATATYPE", "MEMORY")


def check(folder: Path) -> None:
    """Makes the folder. Raises `ValueError` where a report could not be drawn, or not be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("A report is drawn by matplotlib, which this Python doesn't have: pip install matplotlib")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"No report can be written to {folder}: {error.strerror}.") from error


def write(plan: Plan, folder: Path) -> None:
    """Writes OPERATIONS and PICTURE, of a plan that was not refused, to an existing folder."""
    from tt_flux_kontext.planner.picture import draw  # which needs matplotlib

    _replace(folder / OPERATIONS, lambda path: _write_operations(plan, path))
    _replace(folder / PICTURE, draw(plan).savefig)


def _replace(path: Path, save: Callable[[str], object]) -> None:
    """Whole or not at all: saved beside its place, then renamed."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        save(str(new))
        os.replace(new, path)


def _write_operations(plan: Plan, path: str) -> None:
    done = [operation for phase in plan.phases for operation in phase.operations]
    columns = list(_COLUMNS)
    for kind, tensors in (("INPUT", [each.inputs for each in done]), ("OUTPUT", [each.outputs for each in done])):
        columns += [f"{kind}_{i}_{column}" for i in range(max(map(len, tensors))) for column in _TENSOR_COLUMNS]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(_rows(plan))


def _rows(plan: Plan) -> Iterator[dict]:
    """The operations of one chip, phase by phase, with one denoising step, and before each phase a signpost.

    An operation starts when the one before has ended and it is launched; its own time is all else that is modelled.
    """
    chip, arch = CHIPS[plan.system], SYSTEMS[plan.system].arch
    clock = count = 0  # nanoseconds, operations
    launch = round(LAUNCH * 1e9)
    for phase in plan.phases:
        if phase.operations:
            note = "modelled, not measured" + (f"; one of {phase.count}" if phase.count > 1 else "")
            yield {"OP CODE": phase.name, "OP TYPE": "signpost", "ATTRIBUTES": note, "HOST START TS": clock}
        for operation in phase.operations:
            count += 1
            clock += launch
            duration = round(time([operation], chip).seconds * 1e9) - launch
            row = {
                "OP CODE": operation.name,
                "OP TYPE": "tt_dnn_device",
                "GLOBAL CALL COUNT": count,
                "DEVICE ID": 0,
                "DEVICE ARCH": arch,
                "ATTRIBUTES": f"{{'call': '{operation.call}'}}",
                "MATH FIDELITY": operation.fidelity if operation.flop else "",
                "CORE COUNT": chip.cores,
                "AVAILABLE WORKER CORE COUNT": chip.cores,
                "HOST START TS": clock,
                "OP TO OP LATENCY [ns]": launch,
                "DEVICE KERNEL DURATION [ns]": duration,
            }
            yield row | _tensors("INPUT", operation.inputs) | _tensors("OUTPUT", operation.outputs)
            clock += duration


def _tensors(kind: str, places: tuple[Place, ...]) -> dict:
    fields = {}
    for i, place in enumerate(places):
        shape = (1, 1, 1, *place.shape)
        logical = (math.prod(shape[:-3]), *shape[-3:])
        padded = (*logical[:2], *(math.ceil(size / TILE) * TILE for size in logical[2:])) if place.tiled else logical
        values = [f"{outer}[{inner}]" for outer, inner in zip(padded, logical)]
        values.append("TILE" if place.tiled else "ROW_MAJOR")
        values.append(place.dtype)
        # In L1 are the maps of convolutions, a part on each core.
        values.append("DEV_0_DRAM_INTERLEAVED" if place.dram else "DEV_0_L1_SHARDED")
        fields |= {f"{kind}_{i}_{column}": value for column, value in zip(_TENSOR_COLUMNS, values, strict=True)}
    return fields
