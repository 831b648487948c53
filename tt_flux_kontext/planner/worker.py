"""Runs edits with the full-size models on the mock device, and writes what each phase took, a line of JSON each.

Started by `plan.py` in a process of its own, with the environment of `mock_device.py`.
"""

import gc
import json
import warnings

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import dram_bytes, open_device, submeshes
from tt_flux_kontext.edit import Phase
from tt_flux_kontext.planner.kontext_dev import full_size_edit, full_size_editor
from tt_flux_kontext.planner.mock_device import answer, kernels
from tt_flux_kontext.planner.operations import operations, peaks
from tt_flux_kontext.planner.roofline import CHIPS, time
from tt_flux_kontext.precision import PRECISIONS
from tt_flux_kontext.residency import MODELS, DoesNotFit, Models


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch, about meta tensors
    gc.disable()  # captures are a million small objects without cycles, to be looked at again and again
    with answer() as request, open_device("silicon", request["mesh"]) as device:
        if request["at_once"] > 1:  # the others are like the first
            device = submeshes(device, request["at_once"])[0]
        for edit in request["edits"]:
            _plan(request["system"], request["split"], device, **edit)
            gc.collect()  # traces in libraries' exceptions may hold on to its models


def _plan(system: str, split: list[int] | None, device, precision: str | None, **shape) -> None:
    editor = full_size_editor(device, precision or next(iter(PRECISIONS)), split)
    edit = full_size_edit(**shape)
    if precision is None:
        precision = editor.models.fitting_precision(editor.size(edit)) or editor.models.precision.name
        editor = full_size_editor(device, precision, split)
    models = editor.models
    size = editor.size(edit)
    transformer = models.parallel["transformer"]
    _write(
        precision=precision,
        best=models.fitting_precision(size),
        workspaces=models.workspaces(size),
        split=(transformer.sp, transformer.tp),
    )
    phases = editor.run([edit])
    while True:
        free, total = dram_bytes(device)
        uploaded, compiled = models.bytes_uploaded, kernels()
        ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
        try:
            event = next(phases)
        except DoesNotFit as error:
            _write(refused=str(error))
            return
        finally:
            capture = ttnn.graph.end_graph_capture()
        if not isinstance(event, Phase):
            (result,) = event
            if isinstance(result, Exception):
                raise result
            break
        done, peak = operations(capture), peaks(capture)
        modelled = time(done, CHIPS[system])
        _write(
            name=event.name,
            weights=models.bytes_on_device,
            first_upload=models.bytes_uploaded - uploaded,
            peak=total - free + peak.dram,
            free=free - peak.dram,
            l1=peak.l1,
            ops=len(done),
            kernels=kernels() - compiled,
            flop=sum(operation.flop for operation in done),
            traffic=sum(operation.dram_bytes for operation in done),
            link_bytes=sum(operation.link_bytes for operation in done),
            seconds=modelled.seconds,
            communication=modelled.communication,
            operations=done,
            memory=[total - free + size for size in peak.operations],
        )
    _write(uploads=_uploads(models, [name for name in MODELS if edit.pictures or name != "vae encoder"]))


def _uploads(models: Models, names: list[str]) -> dict[str, int]:
    """By phase, the bytes of weights that come to a chip in the next edit, which finds some there."""
    uploads = {}
    for name in names:
        uploaded = models.bytes_uploaded
        models[name]
        uploads["transformer weights" if name == "transformer" else name] = models.bytes_uploaded - uploaded
    return uploads


def _write(**line) -> None:
    print(json.dumps(line, default=vars), flush=True)


if __name__ == "__main__":
    main()
