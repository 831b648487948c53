"""Which weights bear bfloat8_b: an edit's error with one group of them at a time rounded to it.

    python -m reference.sensitivity

The trained tiny Kontext edits held-out pictures, which are compared with those of diffusers in float32: first ours in
each precision, on the emulated device; then diffusers' with one group of weights rounded, so that nothing else errs.
Groups that no policy rounds are here too. Beside each stands what it saves in FLUX.1 Kontext [dev]. The median is over
edits: a few of them stand on an edge, where any error tips them to another picture.
"""

import argparse
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint
from tt_flux_kontext.precision import BF16, PRECISIONS
from tt_flux_kontext.residency import COMPONENTS, Models

from .accuracy import relative_rmse
from .evaluate import editor
from .pipeline import TINY_KONTEXT, load
from .scenes import Edit, draw, held_out_edits

_SAVED = (2048 - 1088) / 1024  # bytes of a weight in a tile of bfloat8_b, less than in one of bfloat16


def groups(last_single_block: int) -> dict[str, re.Pattern]:
    """Patterns of component/tensor, by what people call these weights; the last block counts from 0."""
    double, single = r"transformer/transformer_blocks\.", r"transformer/single_transformer_blocks\."
    matrix = r"\.(?!norm)(?!attn\.norm).*weight"
    patterns = {
        "CLIP": r"text_encoder/.*(_proj|fc\d)\.weight",
        "T5": r"text_encoder_2/.*\.(q|k|v|o|wi_\d|wo)\.weight",
        "VAE's attention": r"vae/.*\.to_.*weight",
        "modulation": r"transformer/(time_text_embed\..*|.*norm\w*\.linear\.)weight",
        "embedders of image and context": r"transformer/(x|context)_embedder\.weight",
        "first double block": rf"{double}0{matrix}",
        "other double blocks": rf"{double}[1-9]\d*{matrix}",
        "last single block": rf"{single}{last_single_block}{matrix}",
        "other single blocks": rf"{single}(?!{last_single_block}\.)\d+{matrix}",
        "output": r"transformer/proj_out\.weight",
        "no policy: embedding tables": r"text_encoder.*(embedding|shared|embed_tokens|attention_bias).*weight",
        "no policy: convolutions": r"vae/.*conv(?!_norm).*weight",
        "no policy: norms": r".*norm[\w.]*(?<!linear)\.weight",
        "no policy: biases": r".*bias",
    }
    return {name: re.compile(pattern) for name, pattern in patterns.items()}


def rounded(checkpoint: Path, pattern: re.Pattern, folder: Path) -> Path:
    """Writes a copy of a checkpoint in which the matching tensors have values of bfloat8_b, in the device's tiles."""
    shutil.copytree(checkpoint, folder)
    for file in folder.glob("*/*.safetensors"):
        tensors = load_file(file)
        for key, value in tensors.items():
            if pattern.fullmatch(f"{file.parent.name}/{key}"):
                stored = value.flatten(1).T if value.ndim > 1 else value[None]
                tiles = ttnn.from_torch(stored.contiguous(), dtype=ttnn.bfloat8_b, layout=ttnn.TILE_LAYOUT)
                back = ttnn.to_torch(tiles).to(value.dtype)
                tensors[key] = (back.T if value.ndim > 1 else back).reshape(value.shape).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def full_size_weights(pattern: re.Pattern) -> int:
    """How many of FLUX.1 Kontext [dev]'s weights match."""
    checkpoint = ShapeCheckpoint()
    return sum(
        math.prod(entry.shape)
        for component in COMPONENTS
        for key, entry in checkpoint.tensors(component).entries.items()
        if pattern.fullmatch(f"{component}/{key}")
    )


def errors(checkpoint: Path, edits: list[Edit], steps: int) -> Iterator[tuple[str, float, float]]:
    """Of policies, then of groups: name, GB saved at full size, median relative RMSE of a picture."""
    before, sentences = [draw(edit.before) for edit in edits], [edit.instruction for edit in edits]

    def pictures(pipe) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        return torch.from_numpy(np.stack(editor(pipe, steps)(before, sentences))).float()

    def error(pipe) -> float:
        return median(map(relative_rmse, pictures(pipe), exact))

    exact = pictures(load(checkpoint))
    with open_device("emulated") as device:
        full_size_models = Models(ShapeCheckpoint(), device, BF16)
        sizes = {name: sum(full_size_models.weight_bytes(policy).values()) for name, policy in PRECISIONS.items()}
        for name, size in sizes.items():
            pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision=name)
            yield name, (sizes["bf16"] - size) / 1e9, error(pipe)
        last = pipe.transformer_config.num_single_layers - 1
    for (name, pattern), full_size in zip(groups(last).items(), groups(37).values()):
        with tempfile.TemporaryDirectory() as folder:
            copy = rounded(checkpoint, pattern, Path(folder) / "copy")
            yield name, full_size_weights(full_size) * _SAVED / 1e9, error(load(copy))


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of an edit with a group of weights in bfloat8_b.")
    parser.add_argument("checkpoint", nargs="?", type=Path, default=TINY_KONTEXT)
    parser.add_argument("--count", type=int, default=24, help="of edits (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{'policy, or group in bfloat8_b':<36}{'saves':>9}{'rel. RMSE':>11}")
    for name, saved, error in errors(arguments.checkpoint, held_out_edits(arguments.count), arguments.steps):
        print(f"{name:<36}{saved:>6.2f} GB{error:>11.4f}", flush=True)


if __name__ == "__main__":
    main()
