"""Checkpoints that break between the hub and the device: what is said, and that nothing is lost by it.

`test_checkpoint.py` has what is found before the first upload in a checkpoint of single files.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from reference.make_checkpoint import make_checkpoint
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.residency import Models

FAST = {"prompt": "a", "max_area": 64 * 64, "max_sequence_length": 32, "num_inference_steps": 1, "output_type": "pt"}


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


@pytest.fixture(scope="module")
def sharded_once(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("sharded") / "tiny", size="tiny", shards=True)


@pytest.fixture
def sharded(sharded_once, tmp_path):
    """A checkpoint in shards, to damage."""
    return shutil.copytree(sharded_once, tmp_path / "sharded")


def refused(folder, device) -> str:
    """What is said of a checkpoint that is refused before anything is on the device."""
    with pytest.raises(CheckpointError) as error:
        FluxKontextPipeline.from_pretrained(folder, device=device)
    assert in_use(device) == 0
    return str(error.value)


def in_use(device) -> int:
    free, total = dram_bytes(device)
    return total - free


class TestShards:
    COMPONENTS = pytest.mark.parametrize("component", ["text_encoder_2", "transformer"])

    @COMPONENTS
    def test_truncated(self, sharded, mesh_device, component):
        shard = max((sharded / component).glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-1])
        message = refused(sharded, mesh_device)
        assert str(shard) in message and f"{shard.stat().st_size} bytes" in message
        assert message.endswith("Fetch the file again.")

    @COMPONENTS
    def test_empty(self, sharded, mesh_device, component):
        shard = max((sharded / component).glob("*.safetensors"))
        shard.write_bytes(b"")
        assert f"{shard} (0 bytes) is no whole safetensors file" in refused(sharded, mesh_device)

    @COMPONENTS
    def test_missing(self, sharded, mesh_device, component):
        shard = max((sharded / component).glob("*.safetensors"))
        shard.unlink()
        message = refused(sharded, mesh_device)
        assert f"names {shard.name}, absent from {sharded / component}" in message

    def test_named_for_another_shard(self, sharded, mesh_device):
        """A shard's content under the name of another: the index says what is not there."""
        first, second = sorted((sharded / "transformer").glob("*.safetensors"))[:2]
        lost = next(iter(load_file(second)))
        shutil.copy(first, second)
        message = refused(sharded, mesh_device)
        assert "names tensors that their files don't hold" in message and f"({second.name})" in message
        assert lost in message or " more" in message

    def test_index_that_names_an_absent_tensor(self, sharded, mesh_device):
        path = next((sharded / "transformer").glob("*.index.json"))
        index = json.loads(path.read_text())
        shard = index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
        path.write_text(json.dumps(index))
        assert f"{path} names tensors that their files don't hold: ghost.weight ({shard})" in refused(
            sharded, mesh_device
        )

    def test_of_another_model(self, sharded, mesh_device):
        """The same names, other shapes."""
        shard = max((sharded / "text_encoder_2").glob("*.safetensors"))
        tensors = {key: tensor.repeat_interleave(2, dim=0) for key, tensor in load_file(shard).items()}
        save_file(tensors, shard)
        message = refused(sharded, mesh_device)
        assert f"{sharded / 'text_encoder_2'} does not fit its config.json" in message
        for key, tensor in tensors.items():
            assert f"wrong shape: {key} {list(tensor.shape)} in {shard.name}, not " in message

    def test_of_another_component(self, copy, mesh_device):
        """Other names altogether."""
        shutil.copy(copy / "text_encoder/model.safetensors", copy / "text_encoder_2/model.safetensors")
        message = refused(copy, mesh_device)
        assert f"{copy / 'text_encoder_2'} does not fit its config.json" in message
        assert "missing: encoder.block.0." in message and "unexpected: text_model." in message


PARAMETERS = {
    "a matrix": ("transformer", "transformer_blocks.0.attn.to_k.weight", "transformer"),
    "a bias": ("transformer", "proj_out.bias", "transformer"),
    "a norm of heads": ("transformer", "single_transformer_blocks.0.attn.norm_q.weight", "transformer"),
    "modulation": ("transformer", "transformer_blocks.0.norm1.linear.weight", "modulation"),
    "an embedding": ("text_encoder_2", "shared.weight", "t5"),
    "a convolution": ("vae", "decoder.conv_in.weight", "vae decoder"),
    "a group norm": ("vae", "encoder.conv_norm_out.bias", "vae encoder"),
}


def damage(folder, component: str, key: str, change):
    """Changes one tensor of a component; returns its file and how to undo it."""
    (file,) = (folder / component).glob("*.safetensors")
    whole = file.read_bytes()
    tensors = load_file(file)
    tensors[key] = change(tensors[key])
    save_file(tensors, file)
    return file, lambda: file.write_bytes(whole)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("component,key,model", PARAMETERS.values(), ids=PARAMETERS.keys())
def test_values_that_are_no_numbers(copy, mesh_device, component, key, model, value):
    """One of them, the last of the tensor, is enough."""

    def spoil(tensor):
        tensor.view(-1)[-1] = float(value)
        return tensor

    file, repair = damage(copy, component, key, spoil)
    models = Models(Checkpoint(copy), mesh_device, BF16)
    with pytest.raises(CheckpointError) as error:
        models[model]
    assert str(error.value) == f"{key} in {file} has values that are NaN or infinite. Fetch the file again."
    del error  # its traceback holds the half-built model
    assert in_use(mesh_device) == 0
    repair()
    models[model]  # without a new start


DTYPES = [torch.float64, torch.int8, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_that_are_not_read(copy, mesh_device, dtype):
    key = "transformer_blocks.0.attn.to_k.weight"
    file, _ = damage(copy, "transformer", key, lambda tensor: tensor.to(dtype))
    assert re.match(
        re.escape(f"{key} in {file} is ") + r"\w+; this model reads F32, BF16, F16.", refused(copy, mesh_device)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dtypes_that_are_read(copy, mesh_device, dtype):
    damage(copy, "transformer", "transformer_blocks.0.attn.to_k.weight", lambda tensor: tensor.to(dtype))
    Models(Checkpoint(copy), mesh_device, BF16)["transformer"]


@pytest.mark.parametrize("harm", ["shortened", "removed"])
def test_a_file_that_breaks_after_the_start(copy, mesh_device, harm):
    """In the middle of an edit; with the file back the same pipeline edits."""
    pipe = FluxKontextPipeline.from_pretrained(copy, device=mesh_device, precision="bf16")
    pipe.set_progress_bar_config(disable=True)
    (file,) = (copy / "transformer").glob("*.safetensors")
    whole = file.read_bytes()
    file.unlink()
    if harm == "shortened":
        file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=f"{file}.*Fetch the file again"):
        pipe(**FAST)
    file.write_bytes(whole)
    pipe(**FAST)


def test_a_spoiled_tensor_is_not_cached(copy, mesh_device, monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    monkeypatch.setenv("TT_FLUX_KONTEXT_CACHE", str(cache))
    damage(copy, "transformer", "proj_out.bias", lambda tensor: tensor * float("nan"))
    with pytest.raises(CheckpointError, match="proj_out.bias in .* NaN"):
        Models(Checkpoint(copy), mesh_device, BF16)["transformer"]
    assert list(cache.iterdir()) == []
