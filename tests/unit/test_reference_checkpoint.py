"""The tiny checkpoints: layout, determinism, loading, and that the weights make mistakes visible."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from reference.make_checkpoint import make_checkpoint, new_folder
from reference.pipeline import load, record

FILES = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def pipe(tiny):
    return load(tiny)


def files(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def edit(pipe, **arguments):
    defaults = {"prompt": "make the circle red", "image": Image.new("RGB", (64, 64), "teal"), "height": 64, "width": 64}
    defaults |= {"max_area": 64 * 64, "num_inference_steps": 2, "max_sequence_length": 32, "_auto_resize": False}
    generator = torch.Generator().manual_seed(0)
    return pipe(**defaults | arguments, generator=generator, output_type="pt").images


def test_it_has_the_files_of_the_hub(tiny):
    single = {"text_encoder_2/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"}
    assert set(files(tiny)) == FILES | single


def test_shards_have_an_index_of_every_tensor(tmp_path):
    folder = make_checkpoint(tmp_path / "sharded", shards=True)
    for name in ("text_encoder_2/model", "transformer/diffusion_pytorch_model"):
        places = json.loads((folder / f"{name}.safetensors.index.json").read_text())["weight_map"]
        assert len(set(places.values())) > 1
        for file in set(places.values()):
            with safe_open(folder / name.split("/")[0] / file, "pt") as tensors:
                assert set(tensors.keys()) == {key for key, place in places.items() if place == file}
    assert load(folder).transformer.config.num_layers == 2


def test_tensor_names_are_those_of_the_hub(tiny):
    with safe_open(tiny / "text_encoder/model.safetensors", "pt") as tensors:
        assert all(key.startswith("text_model.") for key in tensors.keys())
    with safe_open(tiny / "text_encoder_2/model.safetensors", "pt") as tensors:
        assert "shared.weight" in tensors.keys() and "encoder.embed_tokens.weight" not in tensors.keys()


def test_loading_is_silent_and_gives_the_written_values(tiny, pipe, recwarn):
    load(tiny)
    assert not recwarn.list
    with safe_open(tiny / "text_encoder/model.safetensors", "pt") as tensors:
        written = tensors.get_tensor("text_model.final_layer_norm.weight")
    assert torch.equal(pipe.text_encoder.final_layer_norm.weight, written.float())


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tiny, tmp_path):
    again, other = make_checkpoint(tmp_path / "again"), make_checkpoint(tmp_path / "other", seed=1)
    differing = [name for name, path in files(tiny).items() if path.read_bytes() != (again / name).read_bytes()]
    assert not differing
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (tiny / weights).read_bytes() != (other / weights).read_bytes()


def test_clip_ends_with_its_highest_id_and_t5_with_1(pipe):
    ids = pipe.tokenizer("Add a Star, please!", padding="max_length").input_ids
    assert len(ids) == 77 and ids[-1] == max(ids) == pipe.tokenizer.eos_token_id == len(pipe.tokenizer) - 1
    ids = pipe.tokenizer_2("Add a star", padding="max_length").input_ids
    assert len(ids) == 512 and ids[-1] == 0 and 1 in ids
    assert pipe.tokenizer_2.unk_token_id == 2
    assert pipe.tokenizer.tokenize("CIRCLE") == ["circle</w>"]


@pytest.mark.parametrize("size", ["tiny", "tiny_schnell", "odd"])
def test_every_size_edits_a_picture_with_moderate_values(size, tmp_path):
    picture = edit(load(make_checkpoint(tmp_path / size, size)))
    assert picture.shape == (1, 3, 64, 64)
    assert picture.std() > 0.1
    assert ((picture == 0) | (picture == 1)).float().mean() < 0.5


@pytest.mark.parametrize(
    "change", [{"guidance_scale": 7.0}, {"prompt": "remove the star"}, {"image": Image.new("RGB", (64, 64), "white")}]
)
def test_every_input_matters(pipe, change):
    assert (edit(pipe) - edit(pipe, **change)).abs().mean() > 1e-3


def test_calls_are_recorded_while_the_block_runs(pipe):
    with record(pipe.transformer, "", "transformer_blocks.0") as calls:
        edit(pipe)
    edit(pipe)
    assert len(calls[""]) == len(calls["transformer_blocks.0"]) == 2
    assert calls[""][0].kwargs["hidden_states"].shape == (1, 32, 64)
    text, image = calls["transformer_blocks.0"][0].output
    assert text.shape == (1, 32, 128) and image.shape == (1, 32, 128)
    with pytest.raises(AttributeError):
        with record(pipe.transformer, "no_such_block"):
            pass


def test_a_full_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        make_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_unknown_size_is_named(tmp_path):
    with pytest.raises(ValueError, match="'huge'.*tiny"):
        make_checkpoint(tmp_path / "x", "huge")


def test_nothing_is_left_of_a_folder_that_fails(tmp_path):
    with pytest.raises(RuntimeError):
        with new_folder(tmp_path / "half") as work:
            (work / "file").write_text("half")
            raise RuntimeError
    assert not list(tmp_path.iterdir())
