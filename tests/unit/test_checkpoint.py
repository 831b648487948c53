"""Checkpoints that are whole, and what is said of those that are not."""

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from reference.make_checkpoint import make_checkpoint
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError, TensorFiles, hub

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


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_config_of_another_class(copy, mesh_device):
    change(copy / "vae/config.json", _class_name="AutoencoderTiny")
    refused(copy, mesh_device, "is of AutoencoderTiny, not of AutoencoderKL")


class TestFamilies:
    @pytest.mark.parametrize(
        "class_name,what",
        [
            ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
            ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
            ("StableDiffusionPipeline", "Stable Diffusion"),
            ("QwenImageEditPipeline", "Qwen-Image"),
            ("Flux2Pipeline", "FLUX.2"),
            ("FluxFillPipeline", "FLUX.1 Fill"),
            ("FluxControlPipeline", "FLUX.1 Canny or Depth"),
            ("FluxPriorReduxPipeline", "FLUX.1 Redux"),
            ("ChromaPipeline", "Chroma"),
        ],
    )
    def test_other_pipelines_are_named(self, tmp_path, class_name, what):
        """Before the folders that they lack, and with the families that work."""
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
        with pytest.raises(CheckpointError) as error:
            Checkpoint(tmp_path)
        assert f"is a checkpoint of {what} ({class_name}), which" in str(error.value)
        assert "FluxKontextPipeline" in str(error.value) and "FluxPipeline" in str(error.value)

    def test_a_pipeline_without_a_known_family(self, tmp_path):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
        with pytest.raises(CheckpointError, match="is a checkpoint of SanaPipeline, which"):
            Checkpoint(tmp_path)

    @pytest.mark.parametrize(
        "fields,what",
        [
            ({"_class_name": "SD3Transformer2DModel"}, r"Stable Diffusion 3 \(SD3Transformer2DModel\)"),
            ({"_class_name": "Flux2Transformer2DModel"}, r"FLUX.2 \(Flux2Transformer2DModel\)"),
            ({"in_channels": 384}, r"FLUX.1 Fill \(its transformer's in_channels is 384\)"),
            ({"in_channels": 128}, r"FLUX.1 Canny or Depth \(its transformer's in_channels is 128\)"),
        ],
    )
    def test_other_transformers_are_named(self, copy, fields, what):
        change(copy / "transformer/config.json", **fields)
        with pytest.raises(CheckpointError, match=f"is a checkpoint of {what}, which"):
            Checkpoint(copy)

    def test_model_index_is_not_needed(self, copy):
        (copy / "model_index.json").unlink()
        assert Checkpoint(copy).folder == copy

    def test_broken_model_index(self, copy, mesh_device):
        (copy / "model_index.json").write_text("{")
        refused(copy, mesh_device, "model_index.json can't be read as JSON")

    def test_weights_of_another_family_are_not_fetched(self, monkeypatch, tmp_path):
        (tmp_path / "model_index.json").write_text('{"_class_name": "Flux2Pipeline"}')
        fetched = []

        def fetch(repository, allow_patterns):
            fetched.extend(allow_patterns)
            return str(tmp_path)

        monkeypatch.setattr(hub, "snapshot_download", fetch)
        with pytest.raises(CheckpointError, match="FLUX.2"):
            Checkpoint("owner/name")
        assert fetched == ["*.json"]


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
    with pytest.raises(CheckpointError, match="this model reads F32, BF16, F16, F8_E4M3, F8_E5M2"):
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

        monkeypatch.setattr(hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError) as raised:
            Checkpoint("owner/name")
        lines = str(raised.value).splitlines()
        assert len(lines) == 3
        assert first in lines[0] and last in lines[2]

    def test_a_path_that_is_not_there(self):
        with pytest.raises(CheckpointError, match="neither a folder here"):
            Checkpoint("/no/such/folder")

    def test_loads_what_was_fetched(self, monkeypatch, tiny_checkpoint):
        monkeypatch.setattr(hub, "snapshot_download", lambda repository, **_: str(tiny_checkpoint))
        assert Checkpoint("owner/name").folder == tiny_checkpoint
