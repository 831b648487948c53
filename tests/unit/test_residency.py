"""Whose weights are on the device, and when."""

import math

import pytest
import torch

from tt_flux_kontext import FluxKontextPipeline, emulator, residency
from tt_flux_kontext.backend import ttnn, watch
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.models.modulation import Modulation
from tt_flux_kontext.pipeline import USUAL_EDIT
from tt_flux_kontext.precision import BF16, BFP8, BFP8_MIXED, PRECISIONS
from tt_flux_kontext.residency import DoesNotFit

FAST = {"prompt": "a", "max_area": 64 * 64, "max_sequence_length": 32, "num_inference_steps": 2, "output_type": "pt"}


def in_use(device) -> int:
    free, total = dram_bytes(device)
    return total - free


def run(checkpoint, device, **arguments):
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe(generator=torch.Generator().manual_seed(0), **arguments, **FAST).images


def leave_no_room(monkeypatch) -> None:
    """Each model finds the device full."""
    monkeypatch.setattr(residency, "dram_bytes", lambda device: (0, dram_bytes(device)[1]))


def test_models_make_room_for_each_other(tiny_checkpoint, mesh_device, monkeypatch):
    """Where all fit all stay; else only the last one is there at the end. The result is the same."""
    pipe, kept = run(tiny_checkpoint, mesh_device)
    all_models, uploaded = in_use(mesh_device), pipe._editor.models.bytes_uploaded
    again = pipe(generator=torch.Generator().manual_seed(0), **FAST).images
    assert in_use(mesh_device) == all_models and pipe._editor.models.bytes_uploaded == uploaded > 0
    del pipe
    assert in_use(mesh_device) == 0
    leave_no_room(monkeypatch)
    pipe, evicted = run(tiny_checkpoint, mesh_device)
    assert 0 < in_use(mesh_device) < 0.6 * all_models
    assert torch.equal(kept, evicted) and torch.equal(kept, again)


@pytest.mark.parametrize("room", [True, False])
def test_modulation_weights_are_gone_before_the_first_step_unless_there_is_room(
    tiny_checkpoint, mesh_device, monkeypatch, room
):
    if not room:
        leave_no_room(monkeypatch)
    alive = []
    build = Modulation.__init__

    def counted(self, config, weights):
        build(self, config, weights)
        if weights.device:
            alive.append(self.out.weight)

    monkeypatch.setattr(Modulation, "__init__", counted)
    in_steps = []

    def callback(pipe, step, timestep, tensors):
        weight = alive.pop() if alive else None
        before = in_use(mesh_device)
        del weight  # the last reference, were it not for one that a leak holds
        in_steps.append(before - in_use(mesh_device))
        return {}

    run(tiny_checkpoint, mesh_device, callback_on_step_end=callback)
    assert (in_steps[0] == 0) == room and in_steps[1:] == [0]


SPLITS = [("n150", (1, 1)), ("n300", (2, 1)), ("n300", (1, 2)), ("t3k", (4, 2)), ("t3k", (2, 4)), ("galaxy", (8, 4))]


@pytest.mark.parametrize(
    "device_params,split",
    [({"name": f"emulated:{system}"}, split) for system, split in SPLITS],
    ids=[f"{system}, {sp} by {tp}" for system, (sp, tp) in SPLITS],
    indirect=["device_params"],
)
@pytest.mark.parametrize("precision", [BF16, BFP8], ids=["bf16", "bfp8"])
def test_surveyed_bytes_are_those_of_every_chip(tiny_checkpoint, mesh_device, split, precision):
    models = residency.Models(Checkpoint(tiny_checkpoint), mesh_device, precision, split)
    surveyed = models.weight_bytes(precision)
    for name in ("clip", "t5", "modulation", "transformer"):  # not the VAE, whose convolutions place theirs later
        before = in_use(mesh_device)
        chips = zip(*map(emulator.get_device_tensors, placed(models, name)))
        assert {sum(map(size, tensors)) for tensors in chips} == {surveyed[name]}
        # Buffers are spread over all banks, so small ones take more.
        assert surveyed[name] <= in_use(mesh_device) - before <= 3 * surveyed[name]


def placed(models: residency.Models, name: str) -> list:
    """The parameters of a model, which is on the device afterwards."""
    tensors = []

    def note(function_name, function, *args, **kwargs):
        result = function(*args, **kwargs)
        if function_name == "from_torch":
            tensors.append(result)
        return result

    with watch(note):
        models[name]
    return tensors


def size(tensor) -> int:
    """Bytes of a tensor on one chip."""
    values = math.prod(tensor.padded_shape)
    return values // 1024 * tensor.dtype.tile_bytes if tensor.layout == ttnn.TILE_LAYOUT else 2 * values


def test_the_most_accurate_policy_comes_first_and_takes_most(tiny_checkpoint, mesh_device):
    assert list(PRECISIONS.values()) == [BF16, BFP8_MIXED, BFP8]
    models = residency.Models(Checkpoint(tiny_checkpoint), mesh_device, BF16)
    full, mixed, compact = (models.weight_bytes(policy) for policy in PRECISIONS.values())
    assert mixed == full | {"transformer": compact["transformer"]}
    assert sum(compact.values()) < sum(mixed.values()) < sum(full.values())


def test_precision_is_by_default_the_most_accurate_that_fits(tiny_checkpoint, mesh_device, monkeypatch):
    def default():
        return FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device).precision

    assert default() is BF16
    needed = [max(sizes(tiny_checkpoint, mesh_device, policy)) for policy in PRECISIONS.values()]
    for size in needed:
        monkeypatch.setattr(residency, "dram_bytes", lambda device, size=size: (0, size))
        assert default() is next(p for p, least in zip(PRECISIONS.values(), needed) if least <= size)


def sizes(checkpoint, device, precision) -> list[int]:
    """Bytes of weights and activations of each model, in an edit of 1024 x 1024 pixels."""
    models = residency.Models(Checkpoint(checkpoint), device, precision)
    workspaces = models.workspaces(USUAL_EDIT)
    return [models.weight_bytes(precision)[name] + workspaces[name] for name in workspaces]


def test_an_edit_that_does_not_fit_is_refused_before_the_first_upload(tiny_checkpoint, mesh_device, monkeypatch):
    pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device, precision="bf16")
    with monkeypatch.context() as context:
        context.setattr(residency, "dram_bytes", lambda device: (0, residency.LASTING + 1000))
        with pytest.raises(
            DoesNotFit, match="DRAM in bf16:(?s:.)*transformer .* too much(?s:.)*It fits in no precision"
        ):
            pipe(**FAST)
    assert in_use(mesh_device) == 0
    pipe(**FAST)
