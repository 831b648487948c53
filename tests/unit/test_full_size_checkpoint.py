"""The writer of full-size checkpoints: at full depth but narrow, and the plan of the real one. None of the 34 GB."""

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reference.make_checkpoint import HUB_LIMITS, file_plans, make_checkpoint, stream_checkpoint, write_models
from reference.pipeline import load, record
from reference.random_models import build_models, full_models, random_values
from reference.sizes import Size
from tests.unit.test_reference_checkpoint import FILES
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.residency import Models

DEEP = Size(
    clip={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 2},
    t5={"d_model": 96, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 24},
    transformer={
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "axes_dims_rope": (8, 28, 28),
        "guidance_embeds": True,
    },
    vae={"block_out_channels": (32, 64, 64, 96), "layers_per_block": 2, "norm_num_groups": 32},
)
VOCABULARIES = (49408, 32128)
LIMITS = HUB_LIMITS | {"text_encoder_2": ("model", 7_000_000), "transformer": ("diffusion_pytorch_model", 17_500_000)}
SHARDS = {
    *(f"text_encoder_2/model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    *(f"transformer/diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
}


def shapes(size: Size = DEEP) -> dict:
    with torch.device("meta"):
        return build_models(size, *VOCABULARIES)


def files(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return stream_checkpoint(tmp_path_factory.mktemp("checkpoint") / "deep", shapes(), limits=LIMITS)


@pytest.fixture(scope="module")
def pipe(deep):
    return load(deep)


def test_full_size_has_the_files_of_the_hub():
    """Bytes as published of black-forest-labs/FLUX.1-dev, which has the same shapes."""
    plans = file_plans(full_models(), HUB_LIMITS)
    sizes = {f"{component}/{name}": size for component, plan in plans.items() for name, size in plan.sizes.items()}
    assert sizes == {
        "text_encoder/model.safetensors": 246144352,
        "text_encoder_2/model-00001-of-00002.safetensors": 4994582224,
        "text_encoder_2/model-00002-of-00002.safetensors": 4530066360,
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors": 9983040304,
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors": 9949328904,
        "transformer/diffusion_pytorch_model-00003-of-00003.safetensors": 3870584832,
        "vae/diffusion_pytorch_model.safetensors": 167666902,
    }
    assert len(plans["text_encoder_2"].index_text()) == 19885
    shards = plans["transformer"].index["weight_map"]
    assert shards["time_text_embed.guidance_embedder.linear_1.weight"].startswith("diffusion_pytorch_model-00001")
    assert shards["proj_out.bias"].startswith("diffusion_pytorch_model-00003")


def test_schnell_would_have_the_files_of_the_hub():
    """Of black-forest-labs/FLUX.1-schnell the index's size is published too, which hangs on every key and its shard."""
    with torch.device("meta"):
        schnell = FluxTransformer2DModel(guidance_embeds=False)
    plan = file_plans({"transformer": schnell}, {"transformer": HUB_LIMITS["transformer"]})["transformer"]
    assert list(plan.sizes.values()) == [9962580296, 9949328904, 3870584832]
    assert len(plan.index_text()) == 120822


def test_it_has_the_files_of_the_hub(deep):
    indexes = {
        "text_encoder_2/model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    }
    assert set(files(deep)) == FILES | SHARDS | indexes
    assert json.loads((deep / "text_encoder/config.json").read_text())["vocab_size"] == VOCABULARIES[0]
    assert json.loads((deep / "text_encoder_2/config.json").read_text())["vocab_size"] == VOCABULARIES[1]


def test_configs_are_those_that_the_libraries_write(deep, tmp_path):
    """Beside a model of the same size whose weights are in memory."""
    write_models(tmp_path, build_models(DEEP, *VOCABULARIES))
    for path in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        written, theirs = (json.loads((folder / path / "config.json").read_text()) for folder in (deep, tmp_path))
        assert written == theirs


@pytest.mark.parametrize("name", ["text_encoder_2/model", "transformer/diffusion_pytorch_model"])
def test_shards_hold_what_their_index_says(deep, name):
    index = json.loads((deep / f"{name}.safetensors.index.json").read_text())
    component = name.split("/")[0]
    held = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(deep / component / file, "pt") as tensors:
            held |= dict.fromkeys(tensors.keys(), file)
    assert held == index["weight_map"]
    plan = file_plans(shapes(), LIMITS)[component]
    assert held.keys() == plan.shapes.keys()
    assert index["metadata"]["total_size"] == 2 * sum(torch.Size(shape).numel() for shape in plan.shapes.values())


def test_files_are_as_safetensors_writes_them(deep, tmp_path):
    """Header and order of the bytes; every tensor has its shape, is bfloat16 and finite."""
    plans = file_plans(shapes(), LIMITS)
    for name, path in files(deep).items():
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            save_file(tensors, tmp_path / "again", metadata={"format": "pt"})
            assert (tmp_path / "again").read_bytes() == path.read_bytes()
            for key, tensor in tensors.items():
                assert tensor.dtype == torch.bfloat16 and tensor.isfinite().all()
                assert tuple(tensor.shape) == plans[name.split("/")[0]].shapes[key]


def test_the_libraries_load_the_written_values(deep, pipe):
    for component, prefix in (
        ("text_encoder", "text_model."),
        ("text_encoder_2", ""),
        ("transformer", ""),
        ("vae", ""),
    ):
        written = Checkpoint(deep).tensors(component)
        parameters = dict(getattr(pipe, component).named_parameters())
        assert {prefix + name for name in parameters} == written.entries.keys()
        for name, parameter in parameters.items():
            assert torch.equal(parameter, written.read(prefix + name).float())


def test_it_survives_our_survey(deep, mesh_device):
    sizes = Models(Checkpoint(deep), mesh_device, BF16).weight_bytes(BF16)
    assert all(sizes.values())


def test_values_stay_moderate_through_all_blocks(pipe):
    """Of the 57 blocks, of T5's 24 layers, and in the picture."""
    generator = torch.Generator().manual_seed(0)
    arguments = {"height": 64, "width": 64, "max_area": 64 * 64, "_auto_resize": False, "output_type": "pt"}
    arguments |= {"num_inference_steps": 2, "max_sequence_length": 32, "image": Image.new("RGB", (64, 64), "teal")}
    with (
        record(pipe.transformer, "transformer_blocks.18", "single_transformer_blocks.37") as blocks,
        record(pipe.text_encoder_2, "encoder.block.23") as layers,
    ):
        picture = pipe(prompt="make the circle red", generator=generator, **arguments).images
    for calls in (blocks | layers).values():
        for call in calls:
            assert 0.1 < call.output[0].square().mean().sqrt() < 20
    assert picture.std() > 0.1
    assert ((picture == 0) | (picture == 1)).float().mean() < 0.5


def test_clip_pools_at_the_end_of_the_text(pipe):
    """Its config has the end-of-text id 2, so that it takes the highest id; the vocabulary is larger than any."""
    ids = pipe.tokenizer("make the circle red", padding="max_length", return_tensors="pt").input_ids
    assert ids.max() < VOCABULARIES[0] == pipe.text_encoder.config.vocab_size
    end = ids[0].tolist().index(pipe.tokenizer.eos_token_id)
    out = pipe.text_encoder(ids)
    assert 0 < end == ids[0].argmax() and torch.equal(out.pooler_output[0], out.last_hidden_state[0, end])


def test_a_seed_gives_the_same_bytes_with_any_number_of_threads(deep, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        again = stream_checkpoint(tmp_path / "again", shapes(), limits=LIMITS)
    finally:
        torch.set_num_threads(threads)
    assert not [name for name, path in files(deep).items() if path.read_bytes() != (again / name).read_bytes()]


def test_a_tensor_depends_on_the_seed_and_its_name_alone(deep):
    """It is drawn here without those that come before it in the file. The first one takes several pieces."""
    tensors = Checkpoint(deep).tensors("text_encoder_2")
    for key in ("shared.weight", "encoder.block.7.layer.1.DenseReluDense.wo.weight"):
        shape = tensors.entries[key].shape
        drawn, other = (
            torch.cat(list(random_values(seed, "text_encoder_2", None, key, shape))).view(shape) for seed in (0, 1)
        )
        assert torch.equal(drawn, tensors.read(key)) and not torch.equal(drawn, other)


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 10**12 - 10**10, 10**10))
    with pytest.raises(OSError, match=r"needs 33.74 GB, but only 10.00 GB are free"):
        make_checkpoint(tmp_path / "full", "full")
    assert not list(tmp_path.iterdir())


WIDE = """
import os, resource, signal, sys
from dataclasses import replace
from pathlib import Path

from reference import make_checkpoint
from tests.unit.test_full_size_checkpoint import DEEP, LIMITS, shapes

out = Path(sys.argv[1])
size = replace(DEEP, t5={"d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2816, "num_layers": 9})
models = shapes(size)
make_checkpoint.write_tokenizers(out)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
make_checkpoint.stream_checkpoint(out / "wide", models)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), flush=True)
make_checkpoint._write_rest = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
make_checkpoint.stream_checkpoint(out / "killed", shapes(), limits=LIMITS)
"""


def test_memory_is_that_of_a_piece_and_a_killed_run_leaves_nothing_that_looks_whole(tmp_path):
    """In a process of its own, whose memory is its own too. It is killed after the last of the weights."""
    run = subprocess.run([sys.executable, "-c", WIDE, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    written = sum(path.stat().st_size for path in files(tmp_path / "wide").values())
    assert written > 300e6 and int(run.stdout) < 40e6
    assert not (tmp_path / "killed").exists()
    assert not [path for path in tmp_path.glob(".killed-*/work/model_index.json")]


def test_the_planner_has_the_shapes_of_diffusers():
    for component, model in full_models().items():
        prefix = "text_model." if component == "text_encoder" else ""  # in the files
        expected = {prefix + key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
        entries = ShapeCheckpoint().tensors(component).entries
        assert {key: entry.shape for key, entry in entries.items()} == expected
