"""Replays recorded calls of the emulator on real TT-NN; run by test_conformance.py on the mock device."""

import dataclasses
import enum
import json
import pickle
from operator import attrgetter
from pathlib import Path

import torch

from tests.mock.recording import Activation, Call, DeviceMark, SemaphoreMark, TensorForm, TorchForm
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.emulator import Shape, Topology
from tt_flux_kontext.emulator.distribution import MeshComposer, MeshMapper, PlacementShard
from tt_flux_kontext.planner.mock_device import answer


def main() -> None:
    with answer() as request, open_device("silicon") as device:
        calls = pickle.loads(Path(request["calls"]).read_bytes())
        for index, call in enumerate(calls):
            try:
                difference = _difference(call, device)
            except (RuntimeError, TypeError) as error:
                difference = f"refused: {str(error)[:400]}"
            print(json.dumps({"call": index, "difference": difference}), flush=True)


def _difference(call: Call, device) -> str:
    """Where TT-NN's result is unlike the emulator's, or ""."""
    function = ttnn
    for part in call.name.split("."):
        function = getattr(function, part)
    result = function(
        *(_real(item, device) for item in call.args),
        **{key: _real(item, device) for key, item in call.kwargs.items()},
    )
    theirs, ours = _comparable(result), _comparable(call.result)
    if call.name == "conv2d":
        # Its blocking is TT-NN's own affair: how prepared weights are padded, and whether row-major order is honoured
        # where it was asked for, which it is for maps that are cut into slices.
        for out in (theirs, ours):
            out[2] = [dataclasses.replace(parameter, padded_shape=()) for parameter in out[2]]
            if call.kwargs["conv_config"].output_layout.name == "ROW_MAJOR":
                out[0] = dataclasses.replace(out[0], padded_shape=(), layout="")
    return "" if theirs == ours else f"TT-NN gives {theirs}, the emulator {ours}"


def _real(value, device):
    """TT-NN's counterpart of what the emulator was given."""
    if isinstance(value, TensorForm):
        return _tensor(value, device)
    if isinstance(value, TorchForm):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, DeviceMark):
        return device
    if isinstance(value, SemaphoreMark):
        return ttnn.create_global_semaphore(device, _all_cores(device), 0)
    if isinstance(value, MeshMapper):
        placements = [_real(placement, device) for placement in value.placements]
        return ttnn.create_mesh_mapper(device, ttnn.MeshMapperConfig(placements))
    if isinstance(value, MeshComposer):
        return ttnn.create_mesh_composer(device, ttnn.MeshComposerConfig(list(value.dims)))
    if isinstance(value, PlacementShard):  # takes no keyword
        return ttnn.PlacementShard(value.dim)
    if isinstance(value, Activation):
        return ttnn.UnaryWithParam(getattr(ttnn.UnaryOpType, value.name), *value.params)
    if isinstance(value, enum.Enum):
        return attrgetter(f"{type(value).__qualname__}.{value.name}")(ttnn)
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: _real(getattr(value, field.name), device)
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
        return getattr(ttnn, type(value).__name__)(**fields)
    if isinstance(value, Shape):
        return ttnn.Shape(list(value))
    if hasattr(value, "_fields"):  # CoreCoord
        return getattr(ttnn, type(value).__name__)(*value)
    if type(value) in (list, tuple):
        return type(value)(_real(item, device) for item in value)
    return value


def _tensor(form: TensorForm, device):
    """A tensor of the form, of unspecified values."""
    kind = {"dtype": getattr(ttnn.DataType, form.dtype), "layout": getattr(ttnn.Layout, form.layout)}
    if not form.on_device and form.shards == 1:
        return ttnn.from_torch(torch.zeros(form.shape), **kind)
    if form.on_device:
        memory = ttnn.MemoryConfig(
            getattr(ttnn.TensorMemoryLayout, form.memory_layout), getattr(ttnn.BufferType, form.buffer_type)
        )
        kind["memory_config"] = memory
    on_chips = ttnn.empty(list(form.shape), device=device, **kind)
    if not form.on_device:
        return ttnn.from_device(on_chips)
    return on_chips if form.shards == device.get_num_devices() else ttnn.get_device_tensors(on_chips)[0]


def _all_cores(device):
    grid = device.compute_with_storage_grid_size()
    corners = ttnn.CoreCoord(0, 0), ttnn.CoreCoord(grid.x - 1, grid.y - 1)
    return ttnn.CoreRangeSet({ttnn.CoreRange(*corners)})


def _comparable(result):
    """Results of both sides in one form."""
    if isinstance(result, ttnn.Tensor):
        return TensorForm.of(result, ttnn)
    if isinstance(result, torch.Tensor):
        return TorchForm(tuple(result.shape), result.dtype)
    if isinstance(result, (ttnn.Topology, Topology)):
        return result.name
    if isinstance(result, (list, tuple)):
        return [_comparable(item) for item in result]
    return result


if __name__ == "__main__":
    main()
