"""Several edits at once, on parts of an emulated mesh."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from tt_flux_kontext import FluxKontextPipeline, emulator, open_device, side_by_side, submeshes
from tt_flux_kontext.backend import watch
from tt_flux_kontext.device import dram_bytes

PICTURE = Image.linear_gradient("L").resize((64, 96)).convert("RGB")
NO_WORK = ("get_device_tensors", "get_memory_view")  # what asks the host only


@contextmanager
def pipelines(checkpoint, system: str = "n300", parts: int = 2) -> Iterator[list[FluxKontextPipeline]]:
    """Two, on parts of a mesh."""
    with open_device(f"emulated:{system}") as mesh:
        pipes = [FluxKontextPipeline.from_pretrained(checkpoint, device=part) for part in submeshes(mesh, parts)[:2]]
        for pipe in pipes:
            pipe.set_progress_bar_config(disable=True)
        yield pipes


def edit(seed: int, **arguments) -> dict:
    """Arguments of a call, which returns a tuple with a tensor."""
    size = {"image": PICTURE, "max_area": 64 * 96, "_auto_resize": False, "max_sequence_length": 64}
    plain = {"prompt": f"a {seed}", "num_inference_steps": 2, "output_type": "pt", "return_dict": False}
    return size | plain | {"generator": torch.Generator().manual_seed(seed)} | arguments


@pytest.mark.parametrize("system,parts", [("n300", 2), ("t3k", 4)])
def test_results_are_those_of_single_edits(tiny_checkpoint, system, parts):
    """Of edits of several kinds and lengths, more than there are pipelines."""
    kinds = [{}, {"num_inference_steps": 1, "output_type": "latent"}, {"image": None, "height": 32, "width": 32}]

    def calls() -> list[dict]:
        return [edit(seed, **kind) for seed, kind in enumerate(kinds)]

    with pipelines(tiny_checkpoint, system, parts) as pipes:
        single = [pipes[0](**call) for call in calls()]
        together = side_by_side(pipes, calls())
    assert all(
        torch.equal(*results) for (one, other) in zip(single, together, strict=True) for results in zip(one, other)
    )


def test_no_device_is_idle_while_another_is_waited_for(tiny_checkpoint):
    """Each has work when one is waited for, and is read only after it was waited for."""
    events = []

    def note(name, function, *args, **kwargs):
        values = [*args, *kwargs.values()]
        devices = [value for value in values if isinstance(value, emulator.MeshDevice)]
        devices += [value.device() for value in values if isinstance(value, emulator.Tensor) and value.device()]
        if devices and name not in NO_WORK:
            events.append(({"synchronize_device": "wait", "to_torch": "read"}.get(name, "work"), devices[0]))
        return function(*args, **kwargs)

    with pipelines(tiny_checkpoint) as pipes, watch(note):
        side_by_side(pipes, [edit(0), edit(1)])
    devices = {device for _, device in events}
    at_work = dict.fromkeys(devices, False)
    for i, (event, device) in enumerate(events):
        if event == "wait":
            busy_later = {other for kind, other in events[i:] if kind == "work"}
            assert all(at_work[other] for other in devices - {device} & busy_later)
        assert event != "read" or not at_work[device]
        at_work[device] = event == "work"
    assert len(devices) == 2


def test_edits_that_fail_leave_the_others_alone(tiny_checkpoint, warned):
    def spoil(pipe, step, timestep, tensors):
        raise OSError("no more room")

    with pipelines(tiny_checkpoint) as pipes:
        alone = [pipe(**edit(0)) for pipe in pipes for _ in range(3)][0]  # by which traces are there
        in_use = [dram_bytes(pipe._editor.device) for pipe in pipes]
        results = side_by_side(pipes, [edit(1, callback_on_step_end=spoil), edit(2, prompt=3), edit(0), {"images": 1}])
        assert [dram_bytes(pipe._editor.device) for pipe in pipes] == in_use
    assert torch.equal(results.pop(2)[0], alone[0])
    assert [type(result) for result in results] == [OSError, TypeError, TypeError]
    assert [line.partition(" failed: ")[0] for line in sorted(warned)] == [
        f"Edit {number} of 4" for number in (1, 2, 4)
    ]
    assert "Edit 1 of 4 failed: no more room" in warned


def test_pipelines_that_can_not_work_side_by_side(tiny_checkpoint):
    with pipelines(tiny_checkpoint) as (pipe, _):
        for pipes in ([], [pipe, pipe]):
            with pytest.raises(ValueError, match="`pipes` must be different pipelines, at least one"):
                side_by_side(pipes, [edit(0)])
