"""Adapters of a pipeline: edits with them are those of weights merged by hand, whatever else is in between."""

import gc
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.lora_files import kohya, pairs, peft
from tests.unit.test_host_memory import available  # noqa: F401
from tests.unit.test_residency import leave_no_room
from tests.unit.test_weight_cache import Calls, cache, entries  # noqa: F401
from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.checkpoint import CheckpointError, hub
from tt_flux_kontext.checkpoint.tensors import TensorFiles

EDIT = {
    "prompt": "a red circle",
    "max_area": 64 * 64,
    "max_sequence_length": 32,
    "num_inference_steps": 2,
    "output_type": "latent",
    "return_dict": False,
    "_auto_resize": False,
}
CLIP = "text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def linear(tiny_checkpoint) -> dict[str, tuple[int, int]]:
    """(out, in) of the transformer's linear layers."""
    tensors = load_file(tiny_checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    return {key.removesuffix(".weight"): tuple(value.shape) for key, value in tensors.items() if value.ndim == 2}


@pytest.fixture(scope="module")
def first(linear) -> dict[str, torch.Tensor]:
    """Of all layers."""
    return peft(pairs(linear), "transformer.")


@pytest.fixture(scope="module")
def second(linear) -> dict[str, torch.Tensor]:
    """Of a few."""
    some = {module: size for module, size in linear.items() if "attn.to_q" in module}
    return peft(pairs(some, seed=1), "transformer.")


@pytest.fixture(scope="module")
def merged(tiny_checkpoint, tmp_path_factory):
    """A checkpoint with so many times each adapter in its weights, which then are float32."""

    def merge(*adapters: tuple[dict, float]):
        folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("merged") / "checkpoint")
        file = folder / "transformer/diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        for adapter, weight in adapters:
            for key, down in adapter.items():
                if key.endswith(".lora_A.weight"):
                    module = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
                    up = adapter[key.replace("lora_A", "lora_B")]
                    tensors[f"{module}.weight"] = tensors[f"{module}.weight"].float() + weight * (up @ down)
        file.unlink()
        save_file(tensors, file)
        return folder

    return merge


def load(checkpoint, device, precision="bf16") -> FluxKontextPipeline:
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision=precision)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, **more) -> torch.Tensor:
    return pipe(generator=torch.Generator().manual_seed(0), **EDIT | more)[0]


def expected(checkpoint, precision="bf16", device="emulated") -> torch.Tensor:
    with open_device(device) as opened:
        return edit(load(checkpoint, opened, precision))


@pytest.fixture
def pipe(tiny_checkpoint, mesh_device):
    return load(tiny_checkpoint, mesh_device)


@pytest.mark.parametrize("precision", ["bf16", "bfp8"])
def test_weights_are_merged_before_the_one_rounding(tiny_checkpoint, mesh_device, first, merged, precision):
    pipe = load(tiny_checkpoint, mesh_device, precision)
    without = edit(pipe)
    pipe.load_lora_weights(first)
    result = edit(pipe)
    assert not torch.equal(result, without)
    assert torch.equal(result, expected(merged((first, 1.0)), precision))


def test_adapters_add_up_with_their_weights(pipe, first, second, merged):
    pipe.load_lora_weights(first, adapter_name="one")
    pipe.load_lora_weights(second, adapter_name="two")
    assert pipe.get_active_adapters() == ["two"]
    assert torch.equal(edit(pipe), expected(merged((second, 1.0))))
    pipe.set_adapters(["one", "two"], [0.5, -2.0])
    assert pipe.get_active_adapters() == ["one", "two"]
    assert torch.equal(edit(pipe), expected(merged((first, 0.5), (second, -2.0))))
    pipe.set_adapters("one", {"transformer": 0.25})
    assert torch.equal(edit(pipe), expected(merged((first, 0.25))))


def test_a_scale_of_the_call(pipe, second, merged):
    pipe.load_lora_weights(second)
    half, wholly = edit(pipe, joint_attention_kwargs={"scale": 0.5}), edit(pipe)
    assert torch.equal(half, expected(merged((second, 0.5))))
    assert torch.equal(wholly, expected(merged((second, 1.0))))
    calls = [
        {"generator": torch.Generator().manual_seed(0), "joint_attention_kwargs": {"scale": scale}, **EDIT}
        for scale in (0.5, 1.0)
    ]
    assert [torch.equal(ours, theirs) for (ours,), theirs in zip(pipe.edits(calls), (half, wholly))] == [True, True]


def test_what_is_off_has_no_effect(pipe, first):
    plain = edit(pipe)
    pipe.load_lora_weights(first)
    with_it = edit(pipe)
    pipe.disable_lora()
    assert torch.equal(edit(pipe), plain) and pipe.get_active_adapters() == ["default_0"]
    pipe.enable_lora()
    assert torch.equal(edit(pipe), with_it)
    pipe.set_adapters("default_0", 0.0)
    assert torch.equal(edit(pipe), plain)
    pipe.delete_adapters("default_0")
    assert torch.equal(edit(pipe), plain) and pipe.get_list_adapters() == {}


def test_what_is_fused_stays_until_it_is_taken_out(pipe, first, second, merged):
    plain = edit(pipe)
    pipe.load_lora_weights(second, adapter_name="two")
    pipe.fuse_lora(lora_scale=0.5)
    fused = expected(merged((second, 0.5)))
    assert torch.equal(edit(pipe), fused) and pipe.fused_loras == {"two"} and pipe.num_fused_loras == 1
    pipe.set_adapters("two", 3.0)  # applies no more
    pipe.disable_lora()
    pipe.unload_lora_weights()
    assert torch.equal(edit(pipe), fused) and pipe.get_active_adapters() == []
    pipe.load_lora_weights(first)
    assert torch.equal(edit(pipe), expected(merged((second, 0.5), (first, 1.0))))
    pipe.unfuse_lora()
    assert torch.equal(edit(pipe), expected(merged((first, 1.0))))
    pipe.unload_lora_weights()
    assert torch.equal(edit(pipe), plain)


@pytest.mark.parametrize("off", ["disable_lora", "fuse_lora"])
def test_a_scale_without_effect_is_said(pipe, second, warned, off):
    """Of adapters that are off, or part of the weights."""
    pipe.load_lora_weights(second)
    edit(pipe, joint_attention_kwargs={"scale": 0.5})
    assert not warned
    getattr(pipe, off)()
    edit(pipe, joint_attention_kwargs={"scale": 0.5})
    assert len(warned) == 1 and "`joint_attention_kwargs` has no effect" in warned[0]


def test_none_at_work_is_said(pipe, second, warned):
    """Where one that was at work is deleted, and others are there."""
    for name in ("a", "b", "c"):
        pipe.load_lora_weights(second, adapter_name=name)
    pipe.set_adapters(["b", "c"])
    pipe.delete_adapters("c")
    assert not warned
    pipe.delete_adapters("b")
    assert len(warned) == 1 and "brings others back to it: a." in warned[0]
    pipe.delete_adapters("a")
    assert len(warned) == 1


def test_text_encoders(pipe, tiny_checkpoint):
    tensors = load_file(tiny_checkpoint / "text_encoder/model.safetensors")
    key = next(key for key in tensors if key.endswith("layers.0.mlp.fc1.weight"))
    plain = edit(pipe)
    pipe.load_lora_weights(kohya(pairs({CLIP: tensors[key].shape}), alpha=40, prefix="lora_te1_"), adapter_name="clip")
    assert pipe.get_list_adapters() == {"text_encoder": ["clip"]}
    with_it = edit(pipe)
    assert not torch.equal(with_it, plain)
    pipe.fuse_lora()  # leaves text encoders out, as in diffusers
    pipe.set_adapters("clip", {"text_encoder": 0.0})
    assert torch.equal(edit(pipe), plain)


@pytest.mark.parametrize("device", ["emulated:n300", "emulated:p300"])
def test_on_several_chips(tiny_checkpoint, first, merged, device):
    with open_device(device) as opened:
        pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=opened, precision="bf16", split=(1, 2))
        pipe.set_progress_bar_config(disable=True)
        pipe.load_lora_weights(first)
        ours = edit(pipe)
    with open_device(device) as opened:
        pipe = FluxKontextPipeline.from_pretrained(merged((first, 1.0)), device=opened, precision="bf16", split=(1, 2))
        pipe.set_progress_bar_config(disable=True)
        assert torch.equal(ours, edit(pipe))


class TestWhatIsKept:
    def test_the_cache_has_the_checkpoint_alone(self, tiny_checkpoint, mesh_device, cache, first, second, warned):  # noqa: F811
        plain = expected(tiny_checkpoint, "bf16")
        shutil.rmtree(cache)
        pipe = load(tiny_checkpoint, mesh_device)
        pipe.load_lora_weights(first)
        with_it = edit(pipe)  # fills the cache
        filled = entries(cache)
        assert filled == ["clip", "modulation", "t5", "transformer"]
        for name in ("plain", "first", "second"):
            pipe = load(tiny_checkpoint, mesh_device)
            if name != "plain":
                pipe.load_lora_weights({"first": first, "second": second}[name])
            with Calls() as calls:
                result = edit(pipe)
            assert "dump_tensor" not in calls and "load_tensor" in calls
            if name != "second":
                assert torch.equal(result, {"plain": plain, "first": with_it}[name])
        assert entries(cache) == filled and warned == []

    def test_only_what_they_touch_is_made_anew(self, tiny_checkpoint, mesh_device, available, second, monkeypatch):  # noqa: F811
        leave_no_room(monkeypatch)
        pipe = load(tiny_checkpoint, mesh_device)
        plain = edit(pipe)
        read = []
        tensor = TensorFiles.read
        monkeypatch.setattr(TensorFiles, "read", lambda files, key: [read.append(key), tensor(files, key)][1])
        pipe.load_lora_weights(second)
        with_it = edit(pipe)
        touched = {key.removeprefix("transformer.").partition(".lora_")[0] for key in second}
        fused = {f"{module[:-1]}{letter}.weight" for module in touched for letter in "qkv"}
        assert fused <= set(read) <= fused | {f"{name[:-7]}.bias" for name in fused}
        read.clear()
        assert torch.equal(edit(pipe), with_it) and read == []
        pipe.delete_adapters("default_0")
        assert torch.equal(edit(pipe), plain) and fused <= set(read)

    def test_they_take_no_memory_of_the_device(self, pipe, first):
        edit(pipe)
        before = pipe._editor.models.bytes_on_device
        pipe.load_lora_weights(first)
        edit(pipe)
        gc.collect()
        assert pipe._editor.models.bytes_on_device == before


class TestFiles:
    def test_names(self, tmp_path, pipe, second, reported):
        save_file(second, tmp_path / "some.safetensors")
        pipe.load_lora_weights(str(tmp_path / "some.safetensors"))
        pipe.load_lora_weights(tmp_path)
        pipe.load_lora_weights(tmp_path, weight_name="some.safetensors", adapter_name="mine")
        assert pipe.get_list_adapters() == {"transformer": ["default_0", "default_1", "mine"]}
        modules = len(second) // 2
        assert f"LoRA mine: {modules} of {modules} modules of {tmp_path / 'some.safetensors'}" in reported[-1]

    def test_a_folder_of_pefts(self, tmp_path, pipe, second, merged):
        save_file({f"base_model.model.{k.removeprefix('transformer.')}": v for k, v in second.items()}, tmp_path / "adapter_model.safetensors")  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2, "use_rslora": False}))
        pipe.load_lora_weights(tmp_path)
        assert torch.equal(edit(pipe), expected(merged((second, 0.5))))

    def test_from_the_hub(self, tmp_path, pipe, second, monkeypatch):
        save_file(second, tmp_path / "b.safetensors")
        asked = []
        monkeypatch.setattr(hub, "list_repo_files", lambda repository: ["README.md", "b.safetensors"])
        monkeypatch.setattr(
            hub, "snapshot_download", lambda name, allow_patterns: asked.append((name, allow_patterns)) or tmp_path
        )
        pipe.load_lora_weights("somebody/something")
        assert asked == [("somebody/something", ["b.safetensors", "adapter_config.json"])]

    def test_unmatched_modules_are_named(self, pipe, second, warned):
        pipe.load_lora_weights(second | {f"nobody.{i}.alpha": torch.ones(()) for i in range(7)})
        (warning,) = warned
        assert f"7 of {len(second) // 2 + 7} modules are not in this checkpoint" in warning
        assert "nobody.0, nobody.1, nobody.2, nobody.3, nobody.4 and 2 more" in warning

    def test_a_file_that_is_written_over_in_place(self, tmp_path, pipe, second, merged):
        """As `cp` does it."""
        file = tmp_path / "style.SAFETENSORS"
        save_file(second, file)
        pipe.load_lora_weights(file)
        with file.open("r+b") as stream:
            stream.seek(file.stat().st_size // 2)
            stream.write(bytes(file.stat().st_size // 2))
        assert torch.equal(edit(pipe), expected(merged((second, 1.0))))

    def test_in_float8(self, pipe, second):
        pipe.load_lora_weights({key: value.to(torch.float8_e4m3fn) for key, value in second.items()})
        rounded = {key: value.to(torch.float8_e4m3fn).float() for key, value in second.items()}
        ours = edit(pipe)
        pipe.unload_lora_weights()
        pipe.load_lora_weights(rounded)
        assert torch.equal(edit(pipe), ours)

    @pytest.mark.parametrize(
        "make, source, message",
        [
            (lambda folder: None, "none.safetensors", "none.safetensors is not there"),
            (lambda folder: (folder / "a.bin").write_bytes(b"0"), "a.bin", "is no .safetensors file"),
            (lambda folder: (folder / "a.safetensors").write_bytes(b"0" * 99), "a.safetensors", "no whole safetensors"),
            (lambda folder: None, "", "has no .safetensors file: give the name"),
            (
                lambda folder: [(folder / f"{name}.safetensors").touch() for name in "ab"],
                "",
                r"several .safetensors files \(a.safetensors, b.safetensors\): give the name",
            ),
        ],
    )
    def test_what_can_not_be_read(self, tmp_path, pipe, make, source, message):
        make(tmp_path)
        with pytest.raises((ValueError, CheckpointError), match=message):
            pipe.load_lora_weights(tmp_path / source)
        assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda pipe, state: pipe.load_lora_weights(state, adapter_name="a"), "Adapter name a already in use"),
        (lambda pipe, state: pipe.load_lora_weights({"x": 3}), "has tensors by name, but 'x' is int"),
        (lambda pipe, state: pipe.load_lora_weights(3), "a path, a hub id or a dict of tensors, not int"),
        (lambda pipe, state: pipe.set_adapters("b"), r"name\(s\) \['b'\] not in the list of present adapters: \['a'\]"),
        (lambda pipe, state: pipe.set_adapters(["a"], [1, 2]), "names 1 is not equal to the length of the weights 2"),
        (lambda pipe, state: pipe.set_adapters(["a", "a"], [1, 2]), "`adapter_names` has a more than once"),
        (lambda pipe, state: pipe.set_adapters("a", float("nan")), "`adapter_weights` must be finite"),
        (lambda pipe, state: pipe.set_adapters("a", "1"), "has to be a number but is '1'"),
        (lambda pipe, state: pipe.set_adapters("a", {"unet": 1}), "of a has 'unet'; components are"),
        (lambda pipe, state: pipe.delete_adapters("b"), "not in the list of present adapters"),
        (lambda pipe, state: pipe.fuse_lora(components=[]), "`components` cannot be an empty list"),
        (lambda pipe, state: pipe.fuse_lora(components=["vae"]), "vae is not one of the components"),
        (lambda pipe, state: pipe.fuse_lora(adapter_names=["b"]), "not in the list of present adapters"),
        (lambda pipe, state: edit(pipe, joint_attention_kwargs={"gain": 1}), r"it has \['gain'\]"),
        (lambda pipe, state: edit(pipe, joint_attention_kwargs=[1]), "has to be a dict"),
        (lambda pipe, state: edit(pipe, joint_attention_kwargs={"scale": "x"}), "`scale` has to be a number"),
        (
            lambda pipe, state: edit(pipe, callback_on_step_end=lambda pipe, *_: pipe.disable_lora()),
            "A callback can't call the pipeline",
        ),
    ],
)
def test_refused(pipe, second, call, message):
    pipe.load_lora_weights(second, adapter_name="a")
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(pipe, second)
    assert pipe.get_active_adapters() == ["a"]
