"""Tiny checkpoints in the exact layout of black-forest-labs/FLUX.1-Kontext-dev: same classes, files and tensor names.

The weights are random but at a realistic scale: norm weights, biases and adaLN outputs are all far from their neutral
values, so that a mistake in any of them changes the picture.

    python -m reference.make_checkpoint --size tiny DIR
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .sizes import SIZES, Size
from .tokenizers import CLIP_LENGTH, write_clip_tokenizer, write_t5_tokenizer
from .wording import corpus

_MODEL_INDEX = {
    "_class_name": "FluxKontextPipeline",
    "_diffusers_version": "0.34.0.dev0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}

Models = dict[str, torch.nn.Module]
"""The four models by component name: text_encoder, text_encoder_2, transformer, vae."""


def make_checkpoint(folder: str | Path, size: str = "tiny", seed: int = 0, shards: bool = False) -> Path:
    """Writes a checkpoint with random bfloat16 weights.

    Args:
        folder: where to; made with its parents, and only complete or not at all.
        size: a name in SIZES.
        seed: the same seed gives the same bytes.
        shards: write text_encoder_2 and transformer as several safetensors files with an index, as the hub does.

    Returns:
        The folder.

    Raises:
        ValueError: unknown size.
        FileExistsError: the folder has something in it.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose from {', '.join(SIZES)}")
    with new_folder(folder) as work:
        vocabularies = write_tokenizers(work)
        models = build_models(SIZES[size], *vocabularies)
        for offset, name in enumerate(sorted(models)):
            randomize(models[name], seed=4 * seed + offset)
        write_models(work, models, shards)
    return Path(folder)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it doesn't.

    Raises:
        FileExistsError: `folder` has something in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: name a new folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        yield work
        work.rename(folder)


def write_tokenizers(folder: Path) -> tuple[int, int]:
    """Writes `tokenizer` and `tokenizer_2` into a checkpoint folder; returns their vocabulary sizes."""
    sentences = corpus()
    return write_clip_tokenizer(folder / "tokenizer", sentences), write_t5_tokenizer(folder / "tokenizer_2", sentences)


def build_models(size: Size, clip_vocabulary: int, t5_vocabulary: int) -> Models:
    """The four models of a size, with their classes' own initial weights, in float32."""
    pooled, joint = size.clip["hidden_size"], size.t5["d_model"]
    clip = CLIPTextConfig(
        vocab_size=clip_vocabulary,
        projection_dim=pooled,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **size.clip,
    )
    t5 = T5Config(
        vocab_size=32 * math.ceil(t5_vocabulary / 32),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=True,
        **size.t5,
    )
    levels = len(size.vae["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **size.vae,
    )
    transformer = FluxTransformer2DModel(
        in_channels=64, pooled_projection_dim=pooled, joint_attention_dim=joint, **size.transformer
    )
    models = {"text_encoder": CLIPTextModel(clip), "text_encoder_2": T5EncoderModel(t5)}
    models |= {"transformer": transformer, "vae": vae}
    return {name: model.eval() for name, model in models.items()}


def write_models(folder: Path, models: Models, shards: bool = False) -> None:
    """Writes the models in bfloat16, the scheduler's config and model_index.json into a checkpoint folder."""
    for name, model in models.items():
        sharded = shards and name in ("text_encoder_2", "transformer")
        bytes_ = 2 * sum(parameter.numel() for parameter in model.parameters())
        limit = {"max_shard_size": bytes_ // 2} if sharded else {}
        model.bfloat16().save_pretrained(folder / name, **limit)
    # transformers 5 drops the prefix that the hub's CLIP tensors carry.
    tensors = {f"text_model.{name}": tensor for name, tensor in models["text_encoder"].state_dict().items()}
    save_file(tensors, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    FlowMatchEulerDiscreteScheduler(**_SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=2) + "\n")


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Fills every parameter so that activations stay near 1: see `_scale` for weights; norms around 1, biases around 0.

    The values are those of bfloat16, in which checkpoints come, whatever the model's dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_((0.2 * noise).bfloat16())
        elif parameter.ndim == 1:
            parameter.copy_((1 + 0.3 * noise).bfloat16())
        else:
            parameter.copy_((_scale(name, parameter, model.config) * noise).bfloat16())


def _scale(name: str, weight: torch.Tensor, config: object) -> float:
    """Standard deviation of a weight of two or more axes."""
    if "embedding" in name and "embedder" not in name or "shared" in name or "relative_attention_bias" in name:
        return 1.0
    fan_in = weight[0].numel()
    if name.endswith("SelfAttention.q.weight"):  # T5 does not divide its logits by sqrt(d_kv)
        fan_in *= config.d_kv
    if weight.ndim == 4:  # a SiLU halves what it lets through
        return math.sqrt(2 / fan_in)
    return math.sqrt(1 / fan_in)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random FLUX.1 Kontext checkpoint.")
    parser.add_argument("folder")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", action="store_true", help="several safetensors files with an index")
    arguments = parser.parse_args()
    print(make_checkpoint(arguments.folder, arguments.size, arguments.seed, arguments.shards))


if __name__ == "__main__":
    main()
