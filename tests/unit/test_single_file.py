"""Weights in single files: the names against diffusers' converters, the values against the folder's, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from reference.make_checkpoint import make_checkpoint
from tests.single_files import black_forest_labs, latent_diffusion
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError, hub
from tt_flux_kontext.checkpoint.black_forest_labs import sources
from tt_flux_kontext.checkpoint.safetensors_file import StoredTensor
from tt_flux_kontext.checkpoint.single_file import SingleFile
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.planner.kontext_dev import CONFIGS
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.residency import Models

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
CLIP = "text_encoder/model.safetensors"
T5 = "text_encoder_2/model.safetensors"
FAST = {"max_area": 64 * 64, "max_sequence_length": 32, "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture
def file(tiny_checkpoint, tmp_path) -> Path:
    """The tiny transformer in Black Forest Labs' names."""
    path = tmp_path / "flux1-kontext-dev.safetensors"
    save_file(black_forest_labs(load_file(tiny_checkpoint / TRANSFORMER)), path)
    return path


@pytest.fixture
def rest(tiny_checkpoint, tmp_path) -> Path:
    """The tiny checkpoint without weights."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "rest", ignore=shutil.ignore_patterns("*.safetensors"))


def check_same(file: Path, component: str, wanted: dict[str, torch.Tensor]) -> None:
    """Keys, shapes and values, to the bit, of what is read."""
    tensors = SingleFile(file, component)
    assert tensors.entries.keys() == wanted.keys()
    for key, value in wanted.items():
        assert tensors.entries[key].shape == value.shape
        assert torch.equal(tensors.read(key), value), key


def refused(file, config, device, *words: str, **files) -> None:
    """Refused before anything is on the device, in a message with these words."""
    with pytest.raises(CheckpointError) as error:
        FluxKontextPipeline.from_single_file(file, config=config, device=device, **files)
    assert all(word in str(error.value) for word in words), str(error.value)
    free, total = dram_bytes(device)
    assert free == total


class TestNames:
    def test_of_the_transformer_at_full_size(self, tmp_path):
        """All rows of FLUX.1 [dev], each with a number of its own, but of one column: as diffusers converts them."""
        with torch.device("meta"):
            model = FluxTransformer2DModel.from_config(CONFIGS["transformer"])
        shapes = {key: tensor.shape for key, tensor in black_forest_labs(model.state_dict()).items()}
        rows = [shape[0] for shape in shapes.values()]
        numbers = torch.arange(sum(rows)).float().split(rows)
        theirs = {key: values.reshape(-1, *[1] * (len(shapes[key]) - 1)) for key, values in zip(shapes, numbers)}
        assert len(theirs) == 780 and numbers[-1][-1] < 2**24
        save_file(theirs, tmp_path / "flux1-dev.safetensors")
        wanted = convert_flux_transformer_checkpoint_to_diffusers(theirs)
        assert wanted.keys() == model.state_dict().keys() and len(wanted) == 1160
        check_same(tmp_path / "flux1-dev.safetensors", "transformer", wanted)

    def test_no_module_is_forgotten(self):
        with torch.device("meta"):
            model = FluxTransformer2DModel.from_config(CONFIGS["transformer"])
        assert sources(19, 38).keys() == {key.rpartition(".")[0] for key in model.state_dict()}

    @pytest.mark.parametrize("quant_conv", [False, True])
    def test_of_the_vae(self, tmp_path, quant_conv):
        """At full depth."""
        convolutions = {"use_quant_conv": quant_conv, "use_post_quant_conv": quant_conv}
        narrow = {"block_out_channels": [32, 32, 64, 64]}
        vae = AutoencoderKL.from_config(CONFIGS["vae"] | narrow | convolutions)
        theirs = latent_diffusion(vae.state_dict())
        assert ("quant_conv.weight" in theirs) == quant_conv
        save_file(theirs, tmp_path / "ae.safetensors")
        wanted = convert_ldm_vae_checkpoint(theirs, vae.config)
        assert wanted.keys() == vae.state_dict().keys()
        check_same(tmp_path / "ae.safetensors", "vae", wanted)


class TestValues:
    """As the folder's."""

    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_of_the_transformer(self, tiny_checkpoint, tmp_path, prefix):
        tensors = load_file(tiny_checkpoint / TRANSFORMER)
        theirs = {prefix + key: tensor for key, tensor in black_forest_labs(tensors).items()}
        save_file(theirs, tmp_path / "file.safetensors")
        check_same(tmp_path / "file.safetensors", "transformer", tensors)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
    def test_of_other_dtypes(self, tiny_checkpoint, tmp_path, dtype):
        tensors = {key: tensor.to(dtype) for key, tensor in load_file(tiny_checkpoint / TRANSFORMER).items()}
        save_file(black_forest_labs(tensors), tmp_path / "file.safetensors")
        check_same(tmp_path / "file.safetensors", "transformer", tensors)

    @pytest.mark.parametrize("component,file", [("transformer", TRANSFORMER), ("vae", VAE), ("text_encoder", CLIP)])
    def test_in_diffusers_names(self, tiny_checkpoint, component, file):
        check_same(tiny_checkpoint / file, component, load_file(tiny_checkpoint / file))

    def test_of_a_whole_clip(self, tiny_checkpoint, tmp_path):
        """What compares texts with pictures is left out."""
        tensors = load_file(tiny_checkpoint / CLIP)
        others = {"logit_scale": torch.tensor(4.6), "text_projection.weight": torch.zeros(8, 8)}
        others |= {"visual_projection.weight": torch.zeros(8, 8), "vision_model.post_layernorm.bias": torch.zeros(8)}
        save_file(tensors | others, tmp_path / "clip_l.safetensors")
        check_same(tmp_path / "clip_l.safetensors", "text_encoder", tensors)

    def test_of_a_transformer_without_guidance(self, tmp_path):
        folder = make_checkpoint(tmp_path / "tiny", size="tiny")
        tensors = {key: x for key, x in load_file(folder / TRANSFORMER).items() if "guidance" not in key}
        save_file(black_forest_labs(tensors), tmp_path / "flux1-schnell.safetensors")
        check_same(tmp_path / "flux1-schnell.safetensors", "transformer", tensors)


def combined(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint as ComfyUI saves them in one file."""
    return {
        prefix + key: tensor
        for prefix, tensors in (
            ("model.diffusion_model.", black_forest_labs(load_file(folder / TRANSFORMER))),
            ("text_encoders.clip_l.transformer.", load_file(folder / CLIP)),
            ("text_encoders.t5xxl.transformer.", load_file(folder / T5)),
            ("text_encoders.clip_l.", {"logit_scale": torch.tensor(4.6)}),
            ("vae.", latent_diffusion(load_file(folder / VAE))),
        )
        for key, tensor in tensors.items()
    }


class TestPipeline:
    def test_a_whole_edit_is_the_same(self, tiny_checkpoint, file, rest, tmp_path, mesh_device):
        save_file(latent_diffusion(load_file(tiny_checkpoint / VAE)), tmp_path / "ae.safetensors")
        others = {"text_encoder": tiny_checkpoint / CLIP, "text_encoder_2": str(tiny_checkpoint / T5)}
        pipes = (
            FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device, precision="bfp8"),
            FluxKontextPipeline.from_single_file(
                file, config=rest, vae=tmp_path / "ae.safetensors", **others, device=mesh_device, precision="bfp8"
            ),
        )
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
        wanted, out = (
            pipe(image, "a cat", generator=torch.Generator().manual_seed(0), **FAST).images for pipe in pipes
        )
        assert torch.equal(out, wanted)

    def test_nothing_but_headers_is_read(self, tiny_checkpoint, file, mesh_device, monkeypatch):
        monkeypatch.setattr(StoredTensor, "read", None)
        FluxKontextPipeline.from_single_file(file, config=tiny_checkpoint, device=mesh_device)

    def test_what_is_in_no_file_comes_from_the_folder(self, tiny_checkpoint, file, mesh_device):
        checkpoint = Checkpoint.of_files(file, tiny_checkpoint, {"vae": None})
        assert checkpoint.tensors("vae").folder == tiny_checkpoint / "vae"
        assert checkpoint.tensors("transformer").folder == file
        FluxKontextPipeline.from_single_file(file, config=tiny_checkpoint, device=mesh_device)

    def test_a_file_with_all_components(self, tiny_checkpoint, rest, tmp_path, mesh_device):
        save_file(combined(tiny_checkpoint), tmp_path / "all.safetensors")
        FluxKontextPipeline.from_single_file(tmp_path / "all.safetensors", config=rest, device=mesh_device)
        for component, folder in (("text_encoder", CLIP), ("text_encoder_2", T5), ("vae", VAE)):
            check_same(tmp_path / "all.safetensors", component, load_file(tiny_checkpoint / folder))

    def test_a_file_goes_before_that_of_all_components(self, tiny_checkpoint, rest, tmp_path):
        save_file(combined(tiny_checkpoint), tmp_path / "all.safetensors")
        checkpoint = Checkpoint.of_files(tmp_path / "all.safetensors", rest, {"vae": tiny_checkpoint / VAE})
        assert checkpoint.tensors("vae").folder == tiny_checkpoint / VAE
        assert checkpoint.tensors("text_encoder").folder == tmp_path / "all.safetensors"


class TestWeightCache:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TT_FLUX_KONTEXT_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_is_filled_and_read(self, tiny_checkpoint, file, cache, mesh_device):
        checkpoint = Checkpoint.of_files(file, tiny_checkpoint, {})
        Models(checkpoint, mesh_device, BF16)["modulation"]
        (entry,) = cache.glob("modulation-*")
        written = {path: path.stat().st_mtime_ns for path in entry.iterdir()}
        Models(checkpoint, mesh_device, BF16)["modulation"]
        assert {path: path.stat().st_mtime_ns for path in entry.iterdir()} == written

    def test_has_an_entry_for_each_file(self, tiny_checkpoint, file, cache, mesh_device):
        """Of the same model, whose other weights are the same."""
        Models(Checkpoint(tiny_checkpoint), mesh_device, BF16)["modulation"]
        tensors = load_file(file)
        for change in (0, 1):
            save_file(tensors | {"guidance_in.in_layer.bias": tensors["guidance_in.in_layer.bias"] + change}, file)
            Models(Checkpoint.of_files(file, tiny_checkpoint, {}), mesh_device, BF16)["modulation"]
        assert len(list(cache.glob("modulation-*"))) == 3

    def test_one_file_of_several_components(self, tiny_checkpoint, rest, tmp_path, cache, mesh_device):
        save_file(combined(tiny_checkpoint), tmp_path / "all.safetensors")
        models = Models(Checkpoint.of_files(tmp_path / "all.safetensors", rest, {}), mesh_device, BF16)
        for name in ("clip", "modulation"):
            models[name]
        assert len(list(cache.glob("clip-*"))) == len(list(cache.glob("modulation-*"))) == 1


class TestRefusals:
    def test_all_wrong_tensors_are_named(self, tiny_checkpoint, file, mesh_device):
        tensors = load_file(file)
        del tensors["img_in.bias"]
        tensors["final_layer.linear.bias"] = torch.zeros(7)
        tensors["double_blocks.0.img_attn.qkv.bias"] = torch.zeros(3 * 64)
        tensors["distilled_guidance_layer.norms.0.scale"] = torch.zeros(2, 3)
        save_file(tensors, file)
        with pytest.raises(CheckpointError) as error:
            FluxKontextPipeline.from_single_file(file, config=tiny_checkpoint, device=mesh_device)
        first, *lines = str(error.value).splitlines()
        assert first == f"{file} does not fit its config.json:"
        assert set(lines) == {
            "  missing: x_embedder.bias [128]",
            f"  unexpected: distilled_guidance_layer.norms.0.scale [2, 3] in {file.name}",
            f"  wrong shape: proj_out.bias [7] in {file.name}, not [64]",
            *(
                f"  wrong shape: transformer_blocks.0.attn.to_{x}.bias [64] in {file.name}, not [128]"
                for x in ("q", "k", "v")
            ),
        }

    def test_rows_that_are_no_three_parts(self, tiny_checkpoint, file, mesh_device):
        save_file(load_file(file) | {"double_blocks.0.img_attn.qkv.bias": torch.zeros(385)}, file)
        refused(file, tiny_checkpoint, mesh_device, f"img_attn.qkv.bias [385] in {file}", "into 3 equal parts")

    def test_a_tensor_in_both_names(self, tiny_checkpoint, file, mesh_device):
        save_file(load_file(file) | {"x_embedder.bias": torch.zeros(128)}, file)
        refused(file, tiny_checkpoint, mesh_device, f"{file} has x_embedder.bias in diffusers' names and in its own")

    def test_a_tensor_with_a_prefix_and_without(self, tiny_checkpoint, file, mesh_device):
        tensors = load_file(file)
        save_file(
            {f"model.diffusion_model.{key}": x for key, x in tensors.items()} | {"img_in.bias": torch.zeros(128)}, file
        )
        refused(file, tiny_checkpoint, mesh_device, f"{file} has img_in.bias twice", "as model.diffusion_model.img_in")

    def test_another_component(self, tiny_checkpoint, file, mesh_device):
        clip = tiny_checkpoint / CLIP
        refused(clip, tiny_checkpoint, mesh_device, f"{clip} holds no transformer of FLUX.1. It has ")
        refused(file, tiny_checkpoint, mesh_device, f"{clip} holds no text_encoder_2", text_encoder_2=clip)

    def test_a_lora(self, tiny_checkpoint, tmp_path, mesh_device):
        save_file({"lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": torch.zeros(4, 4)}, tmp_path / "lora.st")
        refused(
            tmp_path / "lora.st", tiny_checkpoint, mesh_device, "holds no transformer of FLUX.1", "lora_down.weight"
        )

    @pytest.mark.parametrize("size", [0, 100, 200_000])
    def test_truncated(self, tiny_checkpoint, file, mesh_device, size):
        file.write_bytes(file.read_bytes()[:size])
        refused(file, tiny_checkpoint, mesh_device, f"{file} ({size} bytes) is no whole safetensors file")

    def test_pickled(self, tiny_checkpoint, tmp_path, mesh_device):
        torch.save({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}, tmp_path / "flux.pt")
        refused(tmp_path / "flux.pt", tiny_checkpoint, mesh_device, "flux.pt", "is no whole safetensors file")

    def test_a_folder(self, tiny_checkpoint, mesh_device):
        refused(tiny_checkpoint, tiny_checkpoint, mesh_device, "is a folder, not a file", "from_pretrained")

    def test_not_there(self, tiny_checkpoint, file, mesh_device):
        refused("gone.safetensors", tiny_checkpoint, mesh_device, "gone.safetensors is not there")
        refused(file, tiny_checkpoint, mesh_device, "gone.safetensors is not there", vae="gone.safetensors")

    def test_a_model_in_the_place_of_a_file(self, tiny_checkpoint, file, mesh_device):
        with pytest.raises(TypeError, match="not by Linear"):
            FluxKontextPipeline.from_single_file(
                file, config=tiny_checkpoint, vae=torch.nn.Linear(1, 1), device=mesh_device
            )

    def test_unknown_precision(self, file, mesh_device):
        """Before anything is fetched."""
        with pytest.raises(ValueError, match="Unknown precision 'int4'"):
            FluxKontextPipeline.from_single_file(file, device=mesh_device, precision="int4")

    def test_a_rest_of_another_size(self, tiny_checkpoint, file, tmp_path, mesh_device):
        rest = shutil.copytree(tiny_checkpoint, tmp_path / "other")
        config = rest / "transformer/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 1}))
        refused(file, rest, mesh_device, f"{file} does not fit its config.json", "unexpected: transformer_blocks.1.")


class TestHub:
    @pytest.mark.parametrize(
        "link,revision",
        [
            ("owner/name/sub/flux.safetensors", None),
            ("https://huggingface.co/owner/name/blob/main/sub/flux.safetensors", "main"),
            ("https://huggingface.co/owner/name/resolve/0123abc/sub/flux.safetensors", "0123abc"),
        ],
    )
    def test_links(self, monkeypatch, tiny_checkpoint, file, link, revision):
        asked = []
        monkeypatch.setattr(hub, "hf_hub_download", lambda *names, **options: asked.append((*names, options)) or file)
        assert Checkpoint.of_files(link, tiny_checkpoint, {}).tensors("transformer").folder == file
        assert asked == [("owner/name", "sub/flux.safetensors", {"revision": revision})]

    @pytest.mark.parametrize(
        "error,words",
        [
            (RepositoryNotFoundError, "'models/flux/a.gguf' is neither a file here nor a repository"),
            (EntryNotFoundError, "models/flux on the Hugging Face hub has no such file as 'models/flux/a.gguf'"),
        ],
    )
    def test_not_there(self, monkeypatch, tiny_checkpoint, mesh_device, error, words):
        def fail(*args, **kwargs):
            raise error.__new__(error, "no")

        monkeypatch.setattr(hub, "hf_hub_download", fail)
        refused("models/flux/a.gguf", tiny_checkpoint, mesh_device, words)

    def test_only_what_is_in_no_file_is_fetched(self, monkeypatch, tiny_checkpoint, file):
        patterns = []
        monkeypatch.setattr(
            hub, "snapshot_download", lambda _, allow_patterns: patterns.append(allow_patterns) or tiny_checkpoint
        )
        Checkpoint.of_files(file, "owner/name", {"vae": tiny_checkpoint / VAE})
        fetched = {pattern.split("/")[0] for pattern in patterns[-1] if pattern.endswith(".safetensors")}
        assert fetched == {"text_encoder", "text_encoder_2"}
