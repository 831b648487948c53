"""Folders as people have them: variants, stray and strange files, caches, and tokenizers that are not whole."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError, TensorFiles, hub
from tt_flux_kontext.device import dram_bytes

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
SINGLE_FILE = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint to change."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def refused(folder, device, *words: str, **arguments) -> None:
    """Refused before anything is on the device, in a message with these words."""
    with pytest.raises(CheckpointError) as error:
        FluxKontextPipeline.from_pretrained(folder, device=device, **arguments)
    assert all(word in str(error.value) for word in words), str(error.value)
    free, total = dram_bytes(device)
    assert free == total


def same_tensors(ours: TensorFiles, file: Path) -> bool:
    wanted = load_file(file)
    return ours.entries.keys() == wanted.keys() and all(torch.equal(ours.read(key), wanted[key]) for key in wanted)


def make_variant(folder: Path) -> None:
    for file in list(folder.glob("*/*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))


class TestVariants:
    def test_is_read(self, copy, tiny_checkpoint, mesh_device):
        make_variant(copy)
        FluxKontextPipeline.from_pretrained(copy, device=mesh_device, variant="fp16")
        assert same_tensors(
            Checkpoint(copy, variant="fp16").tensors("vae"), next((tiny_checkpoint / "vae").glob("*.safetensors"))
        )

    def test_is_preferred_to_plain_files(self, copy):
        """And a component without one has its plain files, as in diffusers."""
        variant = {key: tensor + 1 for key, tensor in load_file(copy / WEIGHTS).items()}
        save_file(variant, copy / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
        chosen = Checkpoint(copy, variant="fp16")
        assert same_tensors(chosen.tensors("transformer"), copy / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
        assert same_tensors(Checkpoint(copy).tensors("transformer"), copy / WEIGHTS)
        assert chosen.tensors("vae").entries.keys() == Checkpoint(copy).tensors("vae").entries.keys()

    @pytest.mark.parametrize(
        "shard", ["model.fp16-00001-of-00001.safetensors", "model-00001-of-00001.fp16.safetensors"]
    )
    def test_in_shards(self, copy, tmp_path, shard):
        folder = copy / "text_encoder_2"
        with safe_open(folder / "model.safetensors", "pt") as tensors:
            index = {"weight_map": dict.fromkeys(tensors.keys(), shard)}
        (folder / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
        (folder / "model.safetensors").rename(folder / shard)
        assert same_tensors(Checkpoint(copy, variant="fp16").tensors("text_encoder_2"), folder / shard)
        with pytest.raises(CheckpointError, match=f"It has {shard}. For those files give variant='fp16'"):
            Checkpoint(copy).tensors("text_encoder_2").entries

    def test_not_asked_for(self, copy, mesh_device):
        make_variant(copy)
        refused(
            copy, mesh_device, "text_encoder has no safetensors file", "It has model.fp16.safetensors", "variant='fp16'"
        )

    def test_absent(self, copy, mesh_device):
        refused(copy, mesh_device, f"{copy} has no weights of the variant 'bf16'", variant="bf16")

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_only_its_files_are_fetched(self, monkeypatch, copy, variant):
        patterns = []
        monkeypatch.setattr(hub, "snapshot_download", lambda _, allow_patterns: patterns.append(allow_patterns) or copy)
        if variant:
            make_variant(copy)
        Checkpoint("owner/name", variant)
        fetched = [p for p in patterns[-1] if p.endswith(".safetensors")]
        assert "vae/model.safetensors" in fetched
        assert "transformer/diffusion_pytorch_model-*-of-*.safetensors" in fetched
        assert ("vae/model.fp16.safetensors" in fetched) == (variant == "fp16")


class TestIndex:
    def shard(self, copy, written: str, name: str = "part-1.safetensors"):
        (copy / WEIGHTS).rename(copy / "transformer" / name)
        keys = load_file(copy / "transformer" / name)
        (copy / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(keys, written)}))

    def test_a_name_with_a_dot(self, copy, tiny_checkpoint, mesh_device):
        self.shard(copy, "./part-1.safetensors")
        FluxKontextPipeline.from_pretrained(copy, device=mesh_device)
        assert same_tensors(Checkpoint(copy).tensors("transformer"), tiny_checkpoint / WEIGHTS)

    @pytest.mark.parametrize("name", ["../part-1.safetensors", "/part-1.safetensors", 3, None, ["a"]], ids=str)
    def test_a_name_that_is_none(self, copy, mesh_device, name):
        self.shard(copy, name)
        refused(copy, mesh_device, str(copy / INDEX), f"names {name!r}, which is no file of")

    @pytest.mark.parametrize("index", [INDEX, "text_encoder_2/diffusion_pytorch_model.safetensors.index.json"])
    def test_a_stray_one_beside_a_whole_file(self, copy, tiny_checkpoint, mesh_device, index):
        (copy / index).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
        FluxKontextPipeline.from_pretrained(copy, device=mesh_device)
        assert same_tensors(Checkpoint(copy).tensors("transformer"), tiny_checkpoint / WEIGHTS)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{"])
    def test_broken(self, copy, mesh_device, text):
        (copy / INDEX).write_text(text)
        refused(copy, mesh_device, str(copy / INDEX))


STRANGE = [
    "model_index.json", "scheduler/scheduler_config.json", "vae/config.json", WEIGHTS, "tokenizer/vocab.json",
    "tokenizer/special_tokens_map.json", "tokenizer_2/tokenizer.json", "tokenizer_2/tokenizer_config.json",
]  # fmt: skip


class TestStrangeFiles:
    @pytest.mark.parametrize("name", STRANGE)
    def test_a_named_pipe(self, copy, mesh_device, name):
        """To open one would wait for ever."""
        (copy / name).unlink()
        os.mkfifo(copy / name)
        refused(copy, mesh_device, f"{copy / name} is no regular file")

    @pytest.mark.parametrize("name", STRANGE)
    def test_without_permission(self, copy, mesh_device, monkeypatch, name):
        """As another user would find it."""
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(copy / name) and access(path, mode))
        refused(copy, mesh_device, f"{copy / name} can't be read: Permission denied")

    @pytest.mark.parametrize("name", ["", "vae"])
    def test_a_folder_without_permission(self, copy, mesh_device, monkeypatch, name):
        def stat(path, **kwargs):
            if str(path).startswith(str(copy / name)):
                raise PermissionError(13, "Permission denied")
            return whole(path, **kwargs)

        whole = Path.stat
        monkeypatch.setattr(Path, "stat", stat)
        refused(copy, mesh_device, str(copy / name), "can't be read: Permission denied")

    def test_a_link_to_nothing(self, copy, mesh_device):
        (copy / WEIGHTS).unlink()
        (copy / WEIGHTS).symlink_to("../../blobs/0123")
        refused(copy, mesh_device, f"{copy / WEIGHTS} is a link to a file that is not there")

    def test_weights_of_another_kind(self, copy, mesh_device):
        (copy / WEIGHTS).rename((copy / WEIGHTS).with_suffix(".bin"))
        refused(copy, mesh_device, "transformer has no safetensors file", "It has diffusion_pytorch_model.bin")


class TestSingleFile:
    """Black Forest Labs' layout."""

    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_given_as_the_folder(self, tmp_path, mesh_device, prefix):
        file = tmp_path / "flux1-kontext-dev.safetensors"
        save_file({prefix + key: tensor for key, tensor in SINGLE_FILE.items()}, file)
        refused(
            file,
            mesh_device,
            f"{file} is in Black Forest Labs' single-file layout",
            "FluxKontextPipeline.from_single_file reads it",
        )

    def test_alone_in_the_folder(self, tmp_path, mesh_device):
        save_file(SINGLE_FILE, tmp_path / "flux1-kontext-dev.safetensors")
        refused(tmp_path, mesh_device, "no folder scheduler", "flux1-kontext-dev.safetensors is in Black Forest Labs'")

    def test_in_the_place_of_the_transformer(self, copy, mesh_device):
        save_file(SINGLE_FILE, copy / WEIGHTS)
        refused(copy, mesh_device, f"{copy / 'transformer'} has a file in Black Forest Labs' single-file layout")

    def test_another_file(self, tmp_path, mesh_device):
        (tmp_path / "flux1-kontext-dev.gguf").write_bytes(b"GGUF")
        refused(tmp_path / "flux1-kontext-dev.gguf", mesh_device, "is a file", "from_single_file reads")


class TestCacheOfTheHub:
    @pytest.fixture
    def cached(self, copy, tmp_path):
        folder = tmp_path / "models--owner--name"
        (folder / "snapshots").mkdir(parents=True)
        copy.rename(folder / "snapshots" / "0123abc")
        return folder

    def test_the_only_snapshot(self, cached):
        assert Checkpoint(cached).folder == cached / "snapshots" / "0123abc"

    def test_the_one_of_main(self, cached):
        (cached / "snapshots" / "4567def").mkdir()
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0123abc")
        assert Checkpoint(cached).folder == cached / "snapshots" / "0123abc"

    def test_several(self, cached, mesh_device):
        (cached / "snapshots" / "4567def").mkdir()
        refused(cached, mesh_device, f"{cached} has 2 snapshots and no refs/main")

    def test_the_name_alone(self, cached, monkeypatch):
        asked = []
        snapshot = cached / "snapshots" / "0123abc"
        monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: asked.append(name) or snapshot)
        assert Checkpoint("models--owner--name").folder == snapshot and set(asked) == {"owner/name"}


@pytest.mark.parametrize("class_name", ["FluxKontextInpaintPipeline", "FluxInpaintPipeline", "FluxImg2ImgPipeline"])
def test_saved_by_another_pipeline_of_the_same_weights(copy, mesh_device, class_name):
    (copy / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    FluxKontextPipeline.from_pretrained(copy, device=mesh_device)


class TestTokenizers:
    @pytest.mark.parametrize(
        "lost,named",
        [
            (["tokenizer/merges.txt"], "tokenizer lacks merges.txt"),
            (["tokenizer/vocab.json"], "tokenizer lacks vocab.json"),
            (["tokenizer/tokenizer_config.json"], "tokenizer/tokenizer_config.json is missing"),
            (["tokenizer_2/tokenizer_config.json"], "tokenizer_2/tokenizer_config.json is missing"),
            (
                ["tokenizer_2/tokenizer.json", "tokenizer_2/spiece.model"],
                "tokenizer_2 lacks spiece.model; tokenizer.json",
            ),
            (["scheduler/scheduler_config.json"], "scheduler/scheduler_config.json is missing"),
        ],
    )
    def test_a_missing_file_is_named(self, copy, mesh_device, lost, named):
        for name in lost:
            (copy / name).unlink()
        refused(copy, mesh_device, named)

    @pytest.mark.parametrize(
        "name,text,named",
        [
            ("tokenizer/vocab.json", "{}", "tokenizer"),
            ("tokenizer/vocab.json", "[]", "tokenizer"),
            ("tokenizer/merges.txt", "#version: 0.2\nt h\n", "merges.txt is not whole"),
            ("tokenizer/special_tokens_map.json", "[]", "tokenizer can't be read"),
            ("tokenizer/tokenizer_config.json", "[]", "tokenizer_config.json holds []"),
            ("tokenizer/tokenizer_config.json", "{}", "model_max_length is missing"),
            ("tokenizer/tokenizer_config.json", '{"model_max_length": 100}', "model_max_length is 100"),
            ("tokenizer/tokenizer_config.json", '{"model_max_length": "77"}', 'model_max_length is "77"'),
            ("tokenizer_2/tokenizer.json", "{}", "tokenizer_2 can't be read"),
            ("tokenizer_2/tokenizer.json", "{", "tokenizer_2 can't be read"),
        ],
    )
    def test_a_damaged_file_is_named(self, copy, mesh_device, name, text, named):
        (copy / name).write_text(text)
        refused(copy, mesh_device, str(copy / name.split("/")[0]), named)

    def test_of_another_checkpoint(self, copy, mesh_device):
        path = copy / "tokenizer_2/tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["model"]["vocab"] += [[f"word{i}", -20.0] for i in range(2000)]
        path.write_text(json.dumps(tokenizer))
        refused(copy, mesh_device, f"{copy / 'tokenizer_2'} has ", "they are not of one checkpoint")

    @pytest.mark.parametrize("name", ["tokenizer_2/spiece.model", "tokenizer/special_tokens_map.json"])
    def test_files_that_are_not_needed(self, copy, mesh_device, name):
        whole = FluxKontextPipeline.from_pretrained(copy, device=mesh_device)
        (copy / name).unlink()
        pipe = FluxKontextPipeline.from_pretrained(copy, device=mesh_device)
        for ours, theirs in ((pipe.tokenizer, whole.tokenizer), (pipe.tokenizer_2, whole.tokenizer_2)):
            assert ours("make the circle red").input_ids == theirs("make the circle red").input_ids
