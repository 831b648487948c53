"""Several edits on one device, each phase for all of them before the next."""

import pytest
import torch

from tests.unit.test_residency import in_use, leave_no_room
from tests.unit.test_side_by_side import PICTURE, edit
from tt_flux_kontext import FluxKontextPipeline, open_device, residency
from tt_flux_kontext import edit as editor
from tt_flux_kontext.trace import VARIABLE

MODELS = list(residency.MODELS)


@pytest.fixture
def pipe(request, tiny_checkpoint):
    with open_device(f"emulated:{getattr(request, 'param', 'n150')}") as device:
        pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=device)
        pipe.set_progress_bar_config(disable=True)
        yield pipe


def calls() -> list[dict]:
    """Edits of several kinds and sizes."""
    kinds = [
        {},
        {"num_inference_steps": 3, "output_type": "latent"},
        {"image": None, "height": 32, "width": 32},
        {"prompt": ["a", "b"], "negative_prompt": "c", "true_cfg_scale": 2.0},
        {"mask_image": PICTURE, "strength": 0.5, "reference_images": [PICTURE.rotate(90, expand=True)]},
    ]
    return [edit(seed, **kind) for seed, kind in enumerate(kinds)]


@pytest.mark.parametrize("pipe", ["n150", pytest.param("n300", marks=pytest.mark.slow)], indirect=True)
def test_results_are_those_of_single_edits(pipe, monkeypatch):
    """And each model is loaded once, though each has to make room for the next."""
    leave_no_room(monkeypatch)
    loaded = []
    load = residency.Models._load
    monkeypatch.setattr(
        residency.Models, "_load", lambda models, name, *how: [loaded.append(name), load(models, name, *how)][1]
    )
    together = pipe.edits(calls())
    assert loaded == MODELS
    single = [pipe(**call) for call in calls()]
    assert len(loaded) > 4 * len(MODELS)
    assert all(
        torch.equal(*pair) for (ours,), (theirs,) in zip(together, single, strict=True) for pair in [(ours, theirs)]
    )


def test_steps_beyond_one_table(pipe, monkeypatch):
    monkeypatch.setattr(editor, "TABLE_STEPS", 2)
    kinds = [{"num_inference_steps": 5}, {"num_inference_steps": 1}]

    def five_and_one() -> list[dict]:
        return [edit(seed, **kind) for seed, kind in enumerate(kinds)]

    for (ours,), theirs in zip(pipe.edits(five_and_one()), five_and_one(), strict=True):
        assert torch.equal(ours, pipe(**theirs)[0])


def test_edits_that_wait_take_no_memory_of_the_device(pipe, monkeypatch):
    """But for what is counted for the largest of them. No traces, which keep their results."""
    monkeypatch.setenv(VARIABLE, "off")
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(in_use(pipe._editor.device))

    for count in (1, 4):
        pipe.edits([edit(seed, callback_on_step_end=look) for seed in range(count)])
    pipe.edits([edit(0, callback_on_step_end=look)])
    assert len(set(seen[2:])) == 1  # in the first steps of all the decoder isn't there yet


def test_callbacks_and_interrupts_are_of_one_edit(pipe):
    seen = []

    def watched(number: int, interrupt: bool) -> dict:
        def note(pipe, step, timestep, tensors):
            seen.append((number, step, pipe.num_timesteps, pipe.guidance_scale))
            pipe.interrupt = interrupt and step == 1

        return edit(number, num_inference_steps=3 + number, guidance_scale=float(number), callback_on_step_end=note)

    stopped, whole = pipe.edits([watched(0, True), watched(1, False)])
    assert seen == [(0, step, 3, 0.0) for step in range(2)] + [(1, step, 4, 1.0) for step in range(4)]
    seen.clear()
    assert torch.equal(stopped[0], pipe(**watched(0, True))[0]) and len(seen) == 2
    assert torch.equal(whole[0], pipe(**watched(1, False))[0])
    assert set(pipe.timings) == {
        "clip",
        "t5",
        "vae encoder",
        "modulation",
        "transformer weights",
        "step",
        "vae decoder",
    }


def test_edits_that_fail_leave_the_others_alone(pipe, warned):
    def spoil(pipe, step, timestep, tensors):
        raise OSError("no more room")

    def ask(pipe, step, timestep, tensors):
        pipe(prompt="a")

    for _ in range(3):  # by which traces are there
        (alone,) = pipe(**edit(2))
    memory = in_use(pipe._editor.device)
    wrong = [edit(0, callback_on_step_end=spoil), edit(1, prompt=3), edit(2), {"images": 1}]
    results = pipe.edits([*wrong, edit(4, callback_on_step_end=ask)])
    assert in_use(pipe._editor.device) == memory
    assert torch.equal(results.pop(2)[0], alone)
    assert [type(result) for result in results] == [OSError, TypeError, TypeError, RuntimeError]
    assert [line.partition(" failed: ")[0] for line in warned] == [f"Edit {number} of 5" for number in (1, 2, 4, 5)]
    assert pipe.edits([]) == [] and torch.equal(pipe.edits([edit(2)])[0][0], alone)
    with pytest.raises(OSError, match="no more room"):
        pipe(**edit(0, callback_on_step_end=spoil))
