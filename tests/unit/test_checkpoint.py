"""Checkpoints that are whole, and what is said of those that are not."""

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from reference.make_checkpoint import make_checkpoint
from tt_flux_kontext import FluxKontextPipeline, checkpoint
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError, TensorFiles

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint to damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def refused(folder, device, match):
    with pytest.raises(CheckpointError, match=match):
        FluxKontextPipeline.from_pretrained(folder, device=device)


def test_missing_component(copy, mesh_device):
    shutil.rmtree(copy / "vae")
    refused(copy, mesh_device, "has no folder vae")


def test_truncated_file(copy, mesh_device):
    file = copy / TRANSFORMER
    file.write_bytes(file.read_bytes()[:-1000])
    refused(copy, mesh_device, rf"{TRANSFORMER} \(\d+ bytes\) is no whole safetensors file")


def test_corrupt_header(copy, mesh_device):
    file = copy / TRANSFORMER
    file.write_bytes(b"\xff" * 100 + file.read_bytes()[100:])
    refused(copy, mesh_device, f"{TRANSFORMER}.*no whole safetensors file")


def test_no_weights(copy, mesh_device):
    (copy / TRANSFORMER).unlink()
    refused(copy, mesh_device, "transformer has no safetensors file")


def test_config_of_another_class(copy, mesh_device):
    path = copy / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "SD3Transformer2DModel"}))
    refused(copy, mesh_device, "is of SD3Transformer2DModel, not of FluxTransformer2DModel")


def test_broken_config(copy, mesh_device):
    (copy / "vae/config.json").write_text("{")
    refused(copy, mesh_device, "vae/config.json can't be read as JSON")


def test_models_that_do_not_fit_together(copy, mesh_device):
    path = copy / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"joint_attention_dim": 128}))
    refused(copy, mesh_device, "joint_attention_dim is 128, but its neighbour in the pipeline gives 96")


@pytest.mark.parametrize(
    "field,value,match",
    [
        ("attention_head_dim", 40, "must be the sum of axes_dims_rope"),
        ("patch_size", 2, "patch_size must be 1"),
    ],
)
def test_config_that_can_not_run(copy, mesh_device, field, value, match):
    path = copy / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    refused(copy, mesh_device, match)


def test_all_wrong_tensors_are_named(copy, mesh_device):
    file = copy / TRANSFORMER
    tensors = load_file(file)
    del tensors["x_embedder.bias"]
    tensors["proj_out.bias"] = torch.zeros(7)
    tensors["extra.weight"] = torch.zeros(2, 3)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as error:
        FluxKontextPipeline.from_pretrained(copy, device=mesh_device)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  missing: x_embedder.bias [128]",
        "  wrong shape: proj_out.bias [7] in diffusion_pytorch_model.safetensors, not [64]",
        "  unexpected: extra.weight [2, 3] in diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_dtype_that_is_not_read(tmp_path, dtype):
    save_file({"weight": torch.zeros(4, dtype=dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="this model reads F32, BF16, F16"):
        TensorFiles(tmp_path).read("weight")


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path):
        return make_checkpoint(tmp_path / "sharded", size="tiny", shards=True) / "transformer"

    def test_same_tensors(self, folder, tiny_checkpoint):
        whole, shards = TensorFiles(tiny_checkpoint / "transformer"), TensorFiles(folder)
        assert len({entry.file for entry in shards.entries.values()}) > 1
        assert shards.entries.keys() == whole.entries.keys()
        assert all(torch.equal(shards.read(key), whole.read(key)) for key in whole.entries)

    def test_missing_shard(self, folder):
        file = min(folder.glob("*.safetensors"))
        file.unlink()
        with pytest.raises(CheckpointError, match=f"names {file.name}, absent"):
            TensorFiles(folder).entries

    def test_index_names_a_tensor_that_is_not_there(self, folder):
        path = next(folder.glob("*.index.json"))
        index = json.loads(path.read_text())
        index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
        path.write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="don't hold: ghost.weight"):
            TensorFiles(folder).entries


class TestHub:
    """No network: what huggingface_hub would raise."""

    @pytest.mark.parametrize(
        "error,first,last",
        [
            (GatedRepoError, "Access to owner/name is gated.", "hf auth login"),
            (RepositoryNotFoundError, "neither a folder here nor a repository", "hf auth login"),
            (LocalEntryNotFoundError, "not in the local cache", "give the folder in place of the id"),
        ],
    )
    def test_three_lines_of_help(self, monkeypatch, error, first, last):
        def fail(*args, **kwargs):
            raise error.__new__(error, "no")

        monkeypatch.setattr(checkpoint, "snapshot_download", fail)
        with pytest.raises(CheckpointError) as raised:
            Checkpoint("owner/name")
        lines = str(raised.value).splitlines()
        assert len(lines) == 3
        assert first in lines[0] and last in lines[2]

    def test_a_path_that_is_not_there(self):
        with pytest.raises(CheckpointError, match="neither a folder here"):
            Checkpoint("/no/such/folder")

    def test_loads_what_was_fetched(self, monkeypatch, tiny_checkpoint):
        monkeypatch.setattr(checkpoint, "snapshot_download", lambda repository, **_: str(tiny_checkpoint))
        assert Checkpoint("owner/name").folder == tiny_checkpoint
