"""Safetensors of fewer than 16 bits: float8 in the ways that people have it, and what is refused by its name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.single_files import black_forest_labs
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError
from tt_flux_kontext.checkpoint.single_file import SingleFile
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.residency import Models

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
T5 = "text_encoder_2/model.safetensors"
FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
QKV = "double_blocks.0.img_attn.qkv"


def scaled(tensors: dict[str, torch.Tensor], dtype: torch.dtype, per_row: bool) -> tuple[dict, dict]:
    """Matrices in float8 with their scales by layer, all else as it is."""
    weights, scales = {}, {}
    for key, tensor in tensors.items():
        if tensor.ndim == 2:
            peak = tensor.float().abs().amax(1 if per_row else (0, 1), keepdim=per_row)
            scale = scales[key.removesuffix(".weight")] = peak / torch.finfo(dtype).max
            tensor = (tensor.float() / scale).to(dtype)
        weights[key] = tensor
    return weights, scales


def dequantised(weights: dict[str, torch.Tensor], scales: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    products = {f"{layer}.weight": weights[f"{layer}.weight"].float() * scale for layer, scale in scales.items()}
    return weights | products


def marked(weights: dict, scales: dict, prefix: str = "") -> dict:
    """The older way: a marker for all, scales of weights and inputs."""
    out = {f"{prefix}{key}": tensor for key, tensor in weights.items()} | {f"{prefix}scaled_fp8": torch.zeros(2)}
    for layer, scale in scales.items():
        out |= {f"{prefix}{layer}.scale_weight": scale, f"{prefix}{layer}.scale_input": torch.tensor(0.5)}
    return out


def described(weights: dict, scales: dict, name: str) -> dict:
    """The newer way, with a description beside each weight."""
    text = torch.tensor(list(json.dumps({"format": name, "full_precision_matrix_mult": True}).encode()))
    out = dict(weights)
    for layer, scale in scales.items():
        out |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": text.to(torch.uint8)}
    return out | {f"{QKV}.input_scale": torch.tensor(0.5)}


def header(*layers: str, name: str, **fields) -> dict[str, str]:
    """Or with all descriptions in the header."""
    return {"_quantization_metadata": json.dumps({"layers": dict.fromkeys(layers, {"format": name, **fields})})}


def check(file: Path, wanted: dict[str, torch.Tensor]) -> None:
    """`wanted` has Black Forest Labs' names; `test_single_file.py` holds those against diffusers."""
    save_file(wanted, file.with_name("wanted.safetensors"))
    ours, theirs = SingleFile(file, "transformer"), SingleFile(file.with_name("wanted.safetensors"), "transformer")
    assert ours.entries.keys() == theirs.entries.keys()
    for key in theirs.entries:
        assert torch.equal(ours.read(key).double(), theirs.read(key).double()), key


@pytest.fixture
def transformer(tiny_checkpoint) -> dict[str, torch.Tensor]:
    return black_forest_labs(load_file(tiny_checkpoint / TRANSFORMER))


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "flux1-kontext-dev-fp8.safetensors"


@pytest.mark.parametrize("dtype", FLOAT8.values(), ids=FLOAT8)
class TestFloat8:
    def test_plain(self, transformer, file, dtype):
        weights = {key: tensor.to(dtype) for key, tensor in transformer.items()}
        save_file(weights, file)
        check(file, {key: tensor.float() for key, tensor in weights.items()})

    @pytest.mark.parametrize("per_row", [False, True], ids=["scalar", "per row"])
    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_marked(self, transformer, file, dtype, per_row, prefix):
        weights, scales = scaled(transformer, dtype, per_row)
        save_file(marked(weights, scales, prefix), file)
        check(file, dequantised(weights, scales))

    @pytest.mark.parametrize("per_row", [False, True], ids=["scalar", "per row"])
    def test_described(self, transformer, file, dtype, per_row):
        weights, scales = scaled(transformer, dtype, per_row)
        (name,) = (name for name, each in FLOAT8.items() if each == dtype)
        save_file(described(weights, scales, name), file)
        check(file, dequantised(weights, scales))

    def test_described_in_the_header(self, transformer, file, dtype):
        weights, scales = scaled(transformer, dtype, False)
        (name,) = (name for name, each in FLOAT8.items() if each == dtype)
        tensors = weights | {f"{layer}.weight_scale": scale.reshape(1) for layer, scale in scales.items()}
        save_file(tensors, file, header(*scales, name=name))
        check(file, dequantised(weights, scales))


@pytest.mark.parametrize("kind", ["plain", "scaled"])
def test_a_folder_in_float8(tiny_checkpoint, tmp_path, mesh_device, kind):
    """In shards, each scale in another one than its weight; on the device as the dequantised weights are."""
    folders = [shutil.copytree(tiny_checkpoint, tmp_path / name) for name in ("float8", "float32")]
    weights, scales = scaled(load_file(folders[0] / T5), torch.float8_e4m3fn, per_row=False)
    scales = scales if kind == "scaled" else {}
    shards = {
        "model-1.safetensors": weights,
        "model-2.safetensors": {f"{k}.weight_scale": x for k, x in scales.items()},
    }
    (folders[0] / T5).unlink()
    for name, tensors in shards.items():
        save_file(tensors, folders[0] / "text_encoder_2" / name)
    names = {key: name for name, tensors in shards.items() for key in tensors}
    (folders[0] / f"{T5}.index.json").write_text(json.dumps({"weight_map": names}))
    save_file({key: x.float() for key, x in dequantised(weights, scales).items()}, folders[1] / T5)
    ours, theirs = (Checkpoint(folder).tensors("text_encoder_2") for folder in folders)
    assert all(torch.equal(ours.read(key).float(), theirs.read(key)) for key in theirs.entries)
    assert len(set().union(*(entry.files for entry in ours.entries.values()))) == (2 if scales else 1)
    FluxKontextPipeline.from_pretrained(folders[0], device=mesh_device)


def test_a_t5_in_scaled_float8(tiny_checkpoint, tmp_path):
    weights, scales = scaled(load_file(tiny_checkpoint / T5), torch.float8_e4m3fn, per_row=False)
    empty = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    save_file(marked(weights, scales) | empty, tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors")
    tensors = SingleFile(tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors", "text_encoder_2")
    wanted = dequantised(weights, scales)
    assert tensors.entries.keys() == wanted.keys()
    assert all(torch.equal(tensors.read(key), wanted[key]) for key in wanted)


def test_other_scales_are_other_weights_to_the_cache(tiny_checkpoint, tmp_path, monkeypatch, mesh_device):
    """Though the file of the weights is the same."""
    monkeypatch.setenv("TT_FLUX_KONTEXT_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    weights, scales = scaled(load_file(folder / T5), torch.float8_e4m3fn, per_row=False)
    (folder / T5).rename(folder / "text_encoder_2/weights.safetensors")
    save_file(weights, folder / "text_encoder_2/weights.safetensors")
    names = dict.fromkeys(weights, "weights.safetensors")
    names |= {f"{layer}.weight_scale": "scales.safetensors" for layer in scales}
    (folder / f"{T5}.index.json").write_text(json.dumps({"weight_map": names}))
    for factor in (1, 2):
        tensors = {f"{layer}.weight_scale": factor * scale for layer, scale in scales.items()}
        save_file(tensors, folder / "text_encoder_2/scales.safetensors")
        Models(Checkpoint(folder), mesh_device, BF16)["t5"]
    assert len(list((tmp_path / "cache").glob("t5-*"))) == 2


def test_adapters_change_dequantised_weights(tiny_checkpoint, transformer, file, mesh_device):
    weights, scales = scaled(transformer, torch.float8_e4m3fn, per_row=True)
    save_file(marked(weights, scales), file)
    save_file(dequantised(weights, scales), file.with_name("float32.safetensors"))
    generator = torch.Generator().manual_seed(0)
    adapter = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.randn(4, 128, generator=generator),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.randn(128, 4, generator=generator),
    }

    def edit(path: Path, adapted: bool = True) -> torch.Tensor:
        pipe = FluxKontextPipeline.from_single_file(
            path, config=tiny_checkpoint, device=mesh_device, precision="bfp8_mixed"
        )
        if adapted:
            pipe.load_lora_weights(adapter)
        small = {"max_area": 64 * 64, "max_sequence_length": 32, "num_inference_steps": 1, "output_type": "latent"}
        return pipe(prompt="a cat", generator=torch.Generator().manual_seed(0), **small).images

    out, wanted = edit(file), edit(file.with_name("float32.safetensors"))
    assert torch.equal(out, wanted) and not torch.equal(out, edit(file, adapted=False))


class TestRefusals:
    """By the header, before anything is on the device."""

    @pytest.fixture
    def refused(self, tiny_checkpoint, file, mesh_device):
        def check(tensors: dict, *words: str, metadata: dict | None = None) -> None:
            save_file(tensors, file, metadata)
            with pytest.raises(CheckpointError) as error:
                FluxKontextPipeline.from_single_file(file, config=tiny_checkpoint, device=mesh_device)
            message = str(error.value)
            assert all(word in message for word in (str(file), *words)), message
            free, total = dram_bytes(mesh_device)
            assert free == total

        return check

    @pytest.fixture
    def quantised(self, transformer) -> tuple[dict, dict]:
        return scaled(transformer, torch.float8_e4m3fn, per_row=False)

    @pytest.mark.parametrize(
        "name,keys",
        [
            ("bitsandbytes NF4", ["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"]),
            ("bitsandbytes FP4", ["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__fp4"]),
            ("bitsandbytes in 4 bits", ["weight.absmax", "weight.quant_map"]),
            ("bitsandbytes in 8 bits", ["SCB", "weight_format"]),
            ("SVDQuant (nunchaku)", ["qweight", "wscales", "lora_down", "lora_up", "smooth_factor"]),
            ("GPTQ or AWQ", ["qweight", "qzeros", "scales"]),
            ("optimum-quanto", ["weight._data", "weight._scale"]),
        ],
    )
    def test_other_quantisations(self, transformer, refused, name, keys):
        others = {f"{QKV}.{key}": torch.zeros(4, dtype=torch.uint8) for key in keys}
        refused(transformer | others, f"is quantised by {name} ({QKV}.", "which is not read", "Give it in bfloat16")

    @pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "int8_tensorwise", "asym_w4a8_int8"])
    def test_other_formats(self, quantised, refused, name):
        weights, scales = quantised
        refused(described(weights, scales, name), f"is quantised as {name}", "which is not read")
        tensors = weights | {f"{layer}.weight_scale": scale for layer, scale in scales.items()}
        refused(tensors, f"is quantised as {name} ({QKV})", metadata=header(QKV, name=name))

    def test_blocks_with_scales_of_their_own(self, transformer, refused):
        """As NVFP4 has them: by the format's name, before any oddity of the scales."""
        bytes_ = {f"{QKV}.weight": torch.zeros(384, 64, dtype=torch.uint8), f"{QKV}.weight_scale_2": torch.ones(())}
        bytes_ |= {f"{QKV}.weight_scale": torch.ones(384, 8).to(torch.float8_e4m3fn)}
        refused(transformer | bytes_, f"is quantised as nvfp4 ({QKV})", metadata=header(QKV, name="nvfp4"))
        refused(transformer | bytes_, f"{QKV}.weight_scale [384, 8]", "is no scale of")

    def test_a_rotated_weight(self, quantised, refused):
        weights, scales = quantised
        tensors = weights | {f"{layer}.weight_scale": scale for layer, scale in scales.items()}
        metadata = header(QKV, name="float8_e4m3fn", convrot=True)
        refused(tensors, "is quantised as float8_e4m3fn with convrot", metadata=metadata)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"layers": []}', '{"layers": {"a.b": 3}}'])
    def test_broken_descriptions(self, transformer, refused, text):
        refused(transformer, metadata={"_quantization_metadata": text})

    def test_another_dtype_than_described(self, quantised, refused):
        refused(described(*quantised, "float8_e5m2"), "is said to be float8_e5m2, but is F8_E4M3")

    def test_a_scale_without_a_weight(self, quantised, refused):
        weights, scales = quantised
        for name in ("scale_weight", "weight_scale", "scale_input", "input_scale"):
            ghost = {f"ghost.{name}": torch.ones(())}
            refused(marked(weights, scales) | ghost, f"ghost.{name}", "the scale of a weight that is not there")

    def test_a_marked_weight_without_a_scale(self, quantised, refused):
        weights, scales = quantised
        del scales[QKV]
        refused(marked(weights, scales), f"{QKV}.weight in ", "lacks its scale")

    def test_a_weight_without_a_scale_among_others(self, quantised, refused):
        """In a file that has scales and doesn't say so."""
        weights, scales = quantised
        assert len(scales) > 1
        del scales[QKV]
        tensors = {key: tensor for key, tensor in marked(weights, scales).items() if key != "scaled_fp8"}
        refused(tensors, f"{QKV}.weight in ", "lacks its scale")

    def test_a_described_weight_without_a_scale(self, quantised, refused):
        weights, scales = quantised
        tensors = described(weights, scales, "float8_e4m3fn")
        del tensors[f"{QKV}.weight_scale"]
        refused(tensors, f"{QKV}.weight in ", "lacks its scale")

    def test_two_scales(self, quantised, refused):
        weights, scales = quantised
        tensors = marked(weights, scales) | {f"{QKV}.weight_scale": torch.ones(())}
        refused(tensors, "is a second scale, beside", f"{QKV}.scale_weight")

    @pytest.mark.parametrize("shape", [(2,), (128,), (1, 384), (384, 4)])
    def test_a_scale_of_another_shape(self, quantised, refused, shape):
        weights, scales = quantised
        refused(marked(weights, scales | {QKV: torch.ones(shape)}), f"{QKV}.scale_weight", "is no scale of")

    def test_scales_that_are_unknown(self, quantised, refused):
        weights, scales = quantised
        tensors = weights | {f"{layer}.weight_scale_inv": scale for layer, scale in scales.items()}
        refused(tensors, f"unexpected: {QKV}.weight_scale_inv")

    def test_a_scale_of_integers(self, transformer, refused):
        integers = {f"{QKV}.weight": torch.zeros(384, 128, dtype=torch.int8), f"{QKV}.weight_scale": torch.ones(())}
        refused(transformer | integers, "is I8; this model reads")

    def test_a_scale_that_is_no_number(self, tiny_checkpoint, quantised, file, mesh_device):
        weights, scales = quantised
        save_file(marked(weights, scales | {QKV: torch.tensor(torch.nan)}), file)
        models = Models(Checkpoint.of_files(file, tiny_checkpoint, {}), mesh_device, BF16)
        with pytest.raises(CheckpointError, match="attn.to_q.weight in .* has values that are NaN or infinite"):
            models["transformer"]
