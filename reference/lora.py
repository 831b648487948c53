"""LoRA files as diffusers writes them, in PEFT's names; and a LoRA merged by hand into a diffusers transformer."""

import json
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import safe_open
from safetensors.torch import save_file

HEART_LORA = Path(__file__).parents[1] / "demo" / "lora" / "heart.safetensors"
"""A LoRA that `reference.train_lora` made: the demo's weights don't know hearts."""

RANK, ALPHA = 8, 16
"""Of every layer: ALPHA / RANK scales what a LoRA adds."""

_PREFIX = "transformer."


def write_lora(file: Path, matrices: dict[str, torch.Tensor]) -> Path:
    """Writes a transformer's LoRA in bfloat16, with the metadata that `save_lora_weights` writes.

    `matrices` are `<layer>.lora_A.weight` [RANK, in] and `<layer>.lora_B.weight` [out, RANK] of each layer.
    """
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in matrices})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": layers}
    config |= {"rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False, "use_dora": False, "use_rslora": False}
    metadata = json.dumps({_PREFIX + key: value for key, value in config.items()}, indent=2, sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {_PREFIX + key: matrix.bfloat16().contiguous() for key, matrix in matrices.items()}
    save_file(tensors, file, {"format": "pt", LORA_ADAPTER_METADATA_KEY: metadata})
    return file


def read_lora(file: Path) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """The matrices A [rank, in] and B [out, rank] by the layer of the transformer, and alpha / rank."""
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()[LORA_ADAPTER_METADATA_KEY])
        tensors = {key.removeprefix(_PREFIX): opened.get_tensor(key) for key in opened.keys()}
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
    pairs = {layer: tuple(tensors[f"{layer}.lora_{letter}.weight"] for letter in "AB") for layer in layers}
    return pairs, config[f"{_PREFIX}lora_alpha"] / config[f"{_PREFIX}r"]


@torch.no_grad()
def merge_lora(transformer: FluxTransformer2DModel, file: Path) -> None:
    """Adds a LoRA that `write_lora` wrote to the transformer's weights, in float32: W + alpha / rank * B A."""
    pairs, scale = read_lora(file)
    for layer, (a, b) in pairs.items():
        transformer.get_submodule(layer).weight += scale * b.float() @ a.float()
