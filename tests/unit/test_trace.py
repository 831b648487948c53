"""Denoising steps as traces, on the emulated device: they change no bit, and leave nothing behind."""

from collections import Counter

import pytest
import torch
from PIL import Image

from tt_flux_kontext import FluxKontextPipeline, edit, open_device, side_by_side, submeshes
from tt_flux_kontext.backend import ttnn, watch
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.mesh import Mesh
from tt_flux_kontext.trace import SLOW_DISPATCH, VARIABLE, Traced, can_trace

STEPS = 5
FAST = {"prompt": "a", "max_area": 32 * 32, "max_sequence_length": 32, "num_inference_steps": STEPS}


def load(checkpoint, device, split=None) -> FluxKontextPipeline:
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision="bf16", split=split)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, **arguments) -> tuple[torch.Tensor, Counter]:
    """The latents, and how often each function of TT-NN was called."""
    calls = Counter()

    def count(name, function, *args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    arguments = FAST | {"output_type": "latent", "generator": torch.Generator().manual_seed(0)} | arguments
    with watch(count):
        return pipe(**arguments).images, calls


def change(pipe, step, timestep, tensors):
    """A callback that returns one tensor and changes the other in place."""
    tensors["prompt_embeds"].mul_(0.9)
    return {"latents": tensors["latents"] + 0.1}


CALLBACK = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
CFG = {"negative_prompt": "b", "true_cfg_scale": 2.0}
WHITE = Image.new("RGB", (32, 32), "white")
MASK = {"image": WHITE, "mask_image": WHITE.crop((8, 8, 40, 40)), "reference_images": [WHITE], "_auto_resize": False}


@pytest.mark.parametrize(
    "system,split,arguments,captures,replays",
    [
        ("n150", None, {}, 1, STEPS - 1),
        ("n150", None, {"num_images_per_prompt": 2} | CALLBACK, 1, 2 * STEPS - 1),
        ("n150", None, {"prompt": ["a", "b"]} | CFG, 2, 2 * (STEPS - 1)),
        ("n300", (2, 1), CALLBACK, 1, STEPS - 1),
        ("n300", (1, 2), {"prompt": ["a", "b"], "num_images_per_prompt": 3, "num_inference_steps": 2}, 4, 2 * 5),
        ("t3k", (4, 2), {}, 2, STEPS - 1),
        ("n300", (2, 1), MASK | CALLBACK, 1, STEPS - 1),
    ],
    ids=["one", "results, callback", "prompts, CFG", "tokens, callback", "features, prompts, results", "both", "mask"],
)
def test_traces_change_no_bit(tiny_checkpoint, monkeypatch, system, split, arguments, captures, replays):
    with open_device(f"emulated:{system}") as device:
        pipe = load(tiny_checkpoint, device, split)
        traced, calls = run(pipe, **arguments)
        assert (calls["begin_trace_capture"], calls["execute_trace"]) == (captures, replays)
        assert calls["release_trace"] == captures
        free = dram_bytes(device)
        monkeypatch.setenv(VARIABLE, "off")
        untraced, calls = run(pipe, **arguments)
        assert not calls["begin_trace_capture"] and dram_bytes(device) == free
        assert torch.equal(traced, untraced)


def test_an_edit_that_is_watched(tiny_checkpoint):
    """On a mesh too it is the same to the bit."""
    with open_device("emulated:n300") as device:
        pipe = load(tiny_checkpoint, device)
        arguments = FAST | {"output_type": "pt", "num_inference_steps": 1}
        plain = pipe(**arguments, generator=torch.Generator().manual_seed(0)).images
        assert torch.equal(run(pipe, **arguments)[0], plain)


def test_tables_of_some_steps_at_a_time(tiny_checkpoint, mesh_device, monkeypatch):
    """Each has a trace of its own; too few steps have none."""
    monkeypatch.setattr(edit, "TABLE_STEPS", 5)
    pipe = load(tiny_checkpoint, mesh_device)
    traced, calls = run(pipe, num_inference_steps=12)
    assert (calls["begin_trace_capture"], calls["release_trace"], calls["execute_trace"]) == (2, 2, 8)
    monkeypatch.setenv(VARIABLE, "off")
    assert torch.equal(traced, run(pipe, num_inference_steps=12)[0])


@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps_are_not_captured(tiny_checkpoint, mesh_device, steps):
    _, calls = run(load(tiny_checkpoint, mesh_device), num_inference_steps=steps)
    assert not calls["begin_trace_capture"]


def test_an_edit_that_is_broken_off_leaves_no_trace(tiny_checkpoint, mesh_device):
    def fail(pipe, step, timestep, tensors):
        if step == 3:
            raise ZeroDivisionError

    pipe = load(tiny_checkpoint, mesh_device)
    for _ in range(3):  # by which those are there that stay
        run(pipe)
    free, kept = dram_bytes(mesh_device), set(mesh_device.traces)
    with pytest.raises(ZeroDivisionError):
        run(pipe, callback_on_step_end=fail)
    assert dram_bytes(mesh_device) == free and mesh_device.traces == kept
    edits = pipe.dispatch(**FAST)
    while next(edits).step < 3:
        pass
    edits.close()
    assert dram_bytes(mesh_device) == free and mesh_device.traces == kept


@pytest.mark.parametrize("name", [SLOW_DISPATCH, "TT_METAL_MOCK_CLUSTER_DESC_PATH", "TT_METAL_SIMULATOR"])
def test_where_there_can_be_no_traces(monkeypatch, name):
    assert can_trace()
    monkeypatch.setenv(name, "1")
    assert not can_trace()


def test_side_by_side(tiny_checkpoint):
    with open_device("emulated:n300") as mesh:
        pipes = [load(tiny_checkpoint, part) for part in submeshes(mesh, 2)]
        calls = [FAST | {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"} for seed in (0, 1)]
        first, second = (each.images for each in side_by_side(pipes, calls))
        assert torch.equal(first, run(pipes[1])[0]) and not torch.equal(first, second)


@pytest.mark.parametrize("uses,captures", [(1, 2), (2, 1), (3, 2), (4, 1)])
def test_sets_take_turns_from_replay_to_replay(uses, captures):
    """Of semaphores, whether a call uses them an odd number of times or an even one, and with others' uses between."""
    with open_device("emulated:n300") as device:
        mesh, x = Mesh(device), ttnn.from_torch(torch.ones(1, 8, 32, 64), device=device)
        halo = mesh.tokens().halo

        def work():
            for _ in range(uses):
                halo(x, 1, 1)

        def count(name, function, *args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        calls, traced = Counter(), Traced(work, mesh, calls=8)
        with watch(count):
            for _ in range(8):
                traced()
        assert (calls["begin_trace_capture"], calls["execute_trace"]) == (captures, 7)
        halo(x, 1, 1)
        traced()
        traced.release()
        assert not any(chip.traces for chip in device.chips)


def test_work_that_fails_in_the_capture(mesh_device):
    x = ttnn.from_torch(torch.ones(32, 32), layout=ttnn.TILE_LAYOUT, device=mesh_device)
    numbers = iter((0.5, 0.25))
    traced = Traced(lambda: ttnn.multiply(x, next(numbers)), Mesh(mesh_device), calls=8)
    traced()
    with pytest.raises(RuntimeError, match="multiply: did not run in this form before the trace capture"):
        traced()
    traced.release()
    assert mesh_device.capture is None and not mesh_device.traces
