"""GGUF files, written by gguf's own writer and held against gguf's own numbers."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.single_files import black_forest_labs
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.backend import watch
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError
from tt_flux_kontext.checkpoint.single_file import SingleFile
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.precision import BF16, BFP8
from tt_flux_kontext.residency import Models

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # that gguf can write
BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_S", "TQ2_0", "MXFP4")  # that it can read


@pytest.fixture
def transformer(tiny_checkpoint) -> dict[str, torch.Tensor]:
    return black_forest_labs(load_file(tiny_checkpoint / TRANSFORMER))


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "flux1-kontext-dev.gguf"


def write(file: Path, tensors: dict[str, tuple[np.ndarray, str]], architecture: str | None = "flux") -> None:
    """Tensors, as a kind has them, by name."""
    writer = gguf.GGUFWriter(file, architecture or "flux")
    if architecture is None:
        del writer.kv_data[0]["general.architecture"]
    for key, (values, kind) in tensors.items():
        writer.add_tensor(key, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def blocks(tensors: dict[str, torch.Tensor], kind: str, biases: str = "F32") -> dict[str, tuple[np.ndarray, str]]:
    """Matrices in blocks of a kind, vectors in another."""
    kinds = {key: kind if tensor.ndim == 2 else biases for key, tensor in tensors.items()}
    return {
        key: (gguf.quants.quantize(tensor.float().numpy(), gguf.GGMLQuantizationType[kinds[key]]), kinds[key])
        for key, tensor in tensors.items()
    }


def numbers(tensors: dict[str, tuple[np.ndarray, str]]) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(gguf.quants.dequantize(values, gguf.GGMLQuantizationType[kind]).copy())
        for key, (values, kind) in tensors.items()
    }


def check(file: Path, wanted: dict[str, torch.Tensor]) -> None:
    """`wanted` has Black Forest Labs' names; `test_single_file.py` holds those against diffusers."""
    save_file(wanted, file.with_suffix(".safetensors"))
    ours, theirs = SingleFile(file, "transformer"), SingleFile(file.with_suffix(".safetensors"), "transformer")
    assert ours.entries.keys() == theirs.entries.keys()
    for key, entry in theirs.entries.items():
        assert ours.entries[key].shape == entry.shape
        assert torch.equal(ours.read(key), theirs.read(key)), key


class TestValues:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("biases", ["F32", "BF16"])
    def test_of_a_kind_that_gguf_writes(self, transformer, file, kind, biases):
        tensors = blocks(transformer, kind, biases)
        write(file, tensors)
        check(file, numbers(tensors))

    @pytest.mark.parametrize("kind", BLOCKS)
    def test_of_a_kind_that_gguf_reads(self, file, kind):
        """Bytes at random in a matrix of three parts."""
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        rng = np.random.default_rng(0)
        values = rng.integers(0, 60, (6, 2 * size), dtype=np.uint8)  # small ones, for scales without infinities
        tensors = {"double_blocks.0.img_attn.qkv.weight": (values, kind)}
        write(file, tensors)
        assert numbers(tensors)["double_blocks.0.img_attn.qkv.weight"].shape == (6, 2 * block)
        check(file, numbers(tensors))

    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    @pytest.mark.parametrize("architecture", ["flux", None])
    def test_other_writers(self, transformer, file, prefix, architecture):
        tensors = blocks(transformer, "Q8_0")
        write(file, {prefix + key: tensor for key, tensor in tensors.items()}, architecture)
        check(file, numbers(tensors))

    def test_vectors_in_blocks_that_go_over_parts(self, file):
        """Halves of 48 numbers in blocks of 32."""
        vector = torch.randn(96, generator=torch.Generator().manual_seed(0))
        names = "double_blocks.0.img_attn.qkv.bias", "final_layer.adaLN_modulation.1.bias"
        tensors = blocks(dict.fromkeys(names, vector), "F32", "Q8_0")
        write(file, tensors)
        check(file, numbers(tensors))


class TestPipeline:
    def test_loads(self, tiny_checkpoint, transformer, file, mesh_device):
        write(file, blocks(transformer, "Q4_0"))
        FluxKontextPipeline.from_single_file(file, config=tiny_checkpoint, device=mesh_device)

    @pytest.mark.parametrize("precision", [BF16, BFP8], ids=["bf16", "bfp8"])
    def test_bfloat16_is_on_the_device_as_the_folder_is(
        self, tiny_checkpoint, transformer, file, mesh_device, precision
    ):
        write(file, blocks(transformer, "BF16"))

        def placed(checkpoint: Checkpoint) -> list[torch.Tensor]:
            values = []

            def note(name, function, *args, **kwargs):
                result = function(*args, **kwargs)
                if name == "from_torch":
                    values.append(result.values)
                return result

            models = Models(checkpoint, mesh_device, precision)
            with watch(note):
                models["modulation"], models["transformer"]
            return values

        ours, theirs = placed(Checkpoint.of_files(file, tiny_checkpoint, {})), placed(Checkpoint(tiny_checkpoint))
        assert len(ours) == len(theirs) > 50 and all(map(torch.equal, ours, theirs))


class TestRefusals:
    @pytest.fixture
    def refused(self, tiny_checkpoint, file, mesh_device):
        def check(*words: str, **files) -> None:
            with pytest.raises(CheckpointError) as error:
                FluxKontextPipeline.from_single_file(
                    files.pop("transformer", file), config=tiny_checkpoint, device=mesh_device, **files
                )
            message = str(error.value)
            assert all(word in message for word in (str(file), *words)), message
            free, total = dram_bytes(mesh_device)
            assert free == total

        return check

    @pytest.mark.parametrize("architecture", ["llama", "sd3", "t5encoder"])
    def test_another_architecture(self, transformer, file, refused, architecture):
        write(file, blocks(transformer, "Q8_0"), architecture)
        refused(f"is a GGUF file of {architecture}: only the FLUX.1 transformer's are read")

    def test_a_kind_that_gguf_can_not_dequantise(self, transformer, file, refused):
        values = np.zeros((1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_K][1]), np.uint8)
        write(file, blocks(transformer, "Q8_0") | {"img_in.weight": (values, "Q8_K")})
        refused("has tensors in Q8_K, which the package gguf can't dequantise")

    @pytest.mark.parametrize("left", [5, 100, 4000, 300_000])
    def test_truncated(self, transformer, file, refused, left):
        write(file, blocks(transformer, "Q8_0"))
        file.write_bytes(file.read_bytes()[:left])
        refused(f"({left} bytes) is no whole GGUF file", "Fetch the file again")

    @pytest.mark.parametrize("text", [b"", b"GGML" + bytes(100), b"<html>"])
    def test_no_gguf(self, file, refused, text):
        file.write_bytes(text)
        refused("is no GGUF file: it does not begin as one")

    def test_an_unknown_version(self, transformer, file, refused):
        write(file, blocks(transformer, "Q8_0"))
        file.write_bytes(b"GGUF" + bytes([9, 0, 0, 0]) + file.read_bytes()[8:])
        refused("is no whole GGUF file", "version 9")

    def test_the_other_byte_order(self, transformer, file, refused):
        write(file, blocks(transformer, "Q8_0"))
        file.write_bytes(b"GGUF" + bytes([0, 0, 0, 3]) + file.read_bytes()[8:])
        refused("is no whole GGUF file")

    def test_of_another_component(self, tiny_checkpoint, transformer, file, refused):
        write(file, blocks(transformer, "Q8_0"))
        refused("is read for the transformer alone", transformer=tiny_checkpoint / TRANSFORMER, text_encoder_2=file)

    def test_tensors_of_the_model_that_are_missing(self, transformer, file, refused):
        del transformer["img_in.weight"]
        write(file, blocks(transformer, "Q8_0"))
        refused("does not fit its config.json", "missing: x_embedder.weight")

    def test_without_the_package(self, transformer, file, refused, monkeypatch):
        write(file, blocks(transformer, "Q8_0"))
        monkeypatch.setitem(sys.modules, "gguf", None)
        refused("is a GGUF file", "pip install gguf")
