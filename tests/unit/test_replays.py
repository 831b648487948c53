"""T5 and the VAE as traces that are kept from edit to edit, on the emulated device, which refuses or spoils what a card
would write over.
"""

import pytest
import torch
from PIL import Image

from tests.unit.test_residency import leave_no_room
from tests.unit.test_trace import FAST, load, run
from tt_flux_kontext import open_device, trace
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.vae import Decoder
from tt_flux_kontext.turns import finish

PICTURE = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
EDIT = {"image": PICTURE, "_auto_resize": False, "num_inference_steps": 2, "output_type": "pt"}
OTHER = {"image": PICTURE.resize((48, 64)), "height": 48, "width": 64}
MODELS = 3  # that have one


@pytest.fixture
def pipe(tiny_checkpoint, mesh_device):
    return load(tiny_checkpoint, mesh_device)


def edit(pipe, **arguments) -> tuple[torch.Tensor, int, int]:
    """The picture, and how many traces were captured and replayed. A capture is replayed too."""
    picture, calls = run(pipe, **EDIT | arguments)
    return picture, calls["begin_trace_capture"], calls["execute_trace"]


def counts(pipe, *edits: dict) -> list[tuple[int, int]]:
    return [edit(pipe, **arguments)[1:] for arguments in edits]


def settle(pipe, **arguments) -> torch.Tensor:
    """Edits of one form: the first one has changed something, so that the third is the first to be captured."""
    first, *others = [edit(pipe, **arguments) for _ in range(4)]
    assert [captures for _, captures, _ in (first, *others)] == [0, 0, MODELS, 0]
    assert all(torch.equal(picture, first[0]) for picture, *_ in others)
    return first[0]


@pytest.mark.parametrize(
    "system,split,turns",
    [("n150", None, 1), ("n300", (1, 2), 2), pytest.param("t3k", (4, 2), 2, marks=pytest.mark.slow)],
)
def test_edits_of_one_form(tiny_checkpoint, monkeypatch, system, split, turns):
    """The first two run, the third is captured, later ones are replayed, to the bit. What changes reaches them."""
    with open_device(f"emulated:{system}") as device:
        pipe = load(tiny_checkpoint, device, split)
        edits = [{}, {}, {}, {"prompt": "another"}, {"image": PICTURE.rotate(90)}, {}]
        results = [run(pipe, **EDIT | each) for each in edits]
        captures = [calls["begin_trace_capture"] for _, calls in results]
        # Of the VAE's maps halos are exchanged an odd number of times, so that every other call has the other buffers.
        assert captures == [0, 0, MODELS, 0 if turns == 1 else MODELS - 1, 0, 0]
        assert [calls["execute_trace"] for _, calls in results] == [0, 0, *[MODELS] * 4]
        few, many = sum(results[-1][1].values()), sum(results[1][1].values())
        assert few < 0.6 * many
        monkeypatch.setenv(trace.VARIABLE, "off")
        for each, (traced, _) in zip(edits, results, strict=True):
            assert torch.equal(run(pipe, **EDIT | each)[0], traced)
        assert not any(chip.traces for chip in device.chips)


def test_inputs_of_one_edit(pipe, monkeypatch):
    """Several for one model: what it made of the one before is on the host by then."""
    several = {"prompt": ["a", "b"], "negative_prompt": "c", "true_cfg_scale": 2.0, "reference_images": [PICTURE]}
    traced = settle(pipe, **several)
    assert counts(pipe, several) == [(0, 4 + 2 + 2)]  # prompts, pictures, results
    monkeypatch.setenv(trace.VARIABLE, "off")
    assert torch.equal(edit(pipe, **several)[0], traced)


def test_another_form(pipe):
    """It begins anew. Where forms change within an edit, or from edit to edit, there are no traces."""
    settle(pipe)
    settle(pipe, **OTHER)
    mixed = {"reference_images": [OTHER["image"]], "reference_method": "offset"}
    assert counts(pipe, *[mixed] * 4) == [(0, 1), *[(0, 0)] * 3]  # the text of the first, before its pictures
    assert counts(pipe, {}, OTHER, {}, OTHER) == [(0, 0)] * 4


def test_without_a_picture(pipe):
    """One model less; the first with a picture brings it to the device."""
    text = {"image": None, "height": 32, "width": 32}
    assert counts(pipe, *[text] * 4) == [(0, 0), (0, 0), (2, 2), (0, 2)]
    settle(pipe)


def test_encode_and_decode_share_them(pipe):
    picture = settle(pipe)
    latents = pipe.encode(PICTURE, _auto_resize=False)
    decoded = pipe.decode(latents, 32, 32, output_type="pt")
    again, captures, replays = edit(pipe)
    assert (captures, replays) == (0, MODELS) and torch.equal(again, picture)
    assert torch.equal(decoded, pipe.decode(latents, 32, 32, output_type="pt"))


def test_weights_that_move(pipe, monkeypatch):
    """Take all traces with them: one that lies elsewhere would be read where it was."""
    settle(pipe)
    models = pipe._editor.models
    models.release("t5")
    assert not models.device.traces
    settle(pipe)
    leave_no_room(monkeypatch)
    assert counts(pipe, *[{}] * 4)[1:] == [(0, 0)] * 3 and not models.device.traces


def test_what_others_put_on_the_device(pipe):
    """It may lie where a trace writes: the traces are made anew around it."""
    picture = settle(pipe)
    theirs = ttnn.from_torch(torch.ones(64, 64), layout=ttnn.TILE_LAYOUT, device=pipe._editor.device)
    assert counts(pipe, {}, {}, {}) == [(0, 0), (MODELS, MODELS), (0, MODELS)]
    assert torch.equal(edit(pipe)[0], picture) and torch.equal(ttnn.to_torch(theirs), torch.ones(64, 64))


def test_what_a_callback_leaves_on_the_device(pipe):
    """It came after the traces, and before the decoder's next replay."""
    picture, theirs = settle(pipe), []

    def leave(pipe, step, timestep, tensors):
        theirs.append(ttnn.from_torch(torch.ones(32, 32), layout=ttnn.TILE_LAYOUT, device=pipe._editor.device))

    again, captures, replays = edit(pipe, callback_on_step_end=leave)
    assert (captures, replays) == (0, MODELS - 1) and torch.equal(again, picture)
    assert counts(pipe, {}, {}, {}) == [(0, 0), (MODELS, MODELS), (0, MODELS)]


def test_two_pipelines_on_a_device(tiny_checkpoint, mesh_device):
    """Each begins anew after the other, though it may find as much memory as it left."""
    first, second = (load(tiny_checkpoint, mesh_device) for _ in range(2))
    picture = settle(first)
    assert torch.equal(settle(second), picture) and len(mesh_device.traces) == MODELS
    for pipe in (first, second) * 2:
        again, captures, replays = edit(pipe)
        assert (captures, replays) == (0, 0) and torch.equal(again, picture)


def test_a_call_while_another_waits(pipe):
    """Its steps are replays too, and what it has on the device came after the other traces."""
    picture = settle(pipe)
    for between in range(3):
        waiting = pipe.dispatch(
            **FAST | EDIT | {"num_inference_steps": 6, "generator": torch.Generator().manual_seed(0)}
        )
        while next(waiting).step < 4:
            pass
        assert torch.equal(edit(pipe)[0], picture)
        six = finish(waiting).images
        assert torch.equal(edit(pipe, num_inference_steps=6)[0], six)
        for _ in range(between):
            assert torch.equal(edit(pipe)[0], picture)


def test_a_pipeline_that_is_gone(tiny_checkpoint, monkeypatch):
    with open_device("emulated") as device:
        pipe = load(tiny_checkpoint, device)
        settle(pipe)
        assert device.traces
        del pipe
        assert not device.traces
        pipe = load(tiny_checkpoint, device)
        settle(pipe)
    del pipe  # whose traces went with the device


def test_an_edit_that_fails(pipe):
    def fail(pipe, step, timestep, tensors):
        raise ZeroDivisionError

    picture = settle(pipe)
    with pytest.raises(ZeroDivisionError):
        edit(pipe, callback_on_step_end=fail)
    for _ in range(2):
        assert torch.equal(edit(pipe)[0], picture)


def test_a_model_that_is_broken_off(pipe, monkeypatch):
    """In its first run, before all of its programs are there: it has to run before it can be captured."""

    def break_off(decoder, latents):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decoder, "decode", break_off)
        edit(pipe)
    settle(pipe)


def test_no_room(pipe, monkeypatch):
    monkeypatch.setattr(trace, "ROOM", 13_000_000_000)
    assert counts(pipe, *[{}] * 4) == [(0, 0)] * 4
