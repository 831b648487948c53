"""Random checkpoints in the exact layout of black-forest-labs/FLUX.1-Kontext-dev: same classes, files and tensor names.

The weights are random but at a realistic scale: norm weights, biases and adaLN outputs are all far from their neutral
values, so that a mistake in any of them changes the picture.

    python -m reference.make_checkpoint --size tiny DIR
    python -m reference.make_checkpoint --size full DIR    # 34 GB on disk, some minutes, little memory

The full size has the shapes, file names and shard boundaries of the original. Its tokenizers are the small ones made
here: their ids are all below the vocabularies' real sizes, which its configs have.
"""

import argparse
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PretrainedConfig

from .random_models import Models, build_models, full_models, random_values, randomize
from .safetensors_stream import Plan, plan
from .sizes import SIZES
from .tokenizers import write_clip_tokenizer, write_t5_tokenizer
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

HUB_LIMITS = {
    "text_encoder": ("model", 5 * 10**9),
    "text_encoder_2": ("model", 5 * 10**9),
    "transformer": ("diffusion_pytorch_model", 10 * 10**9),
    "vae": ("diffusion_pytorch_model", 10 * 10**9),
}
"""Stem of the file names and bytes of a shard at most, by component: what transformers and diffusers had by default.

With huggingface_hub's rule they give the seven files of black-forest-labs/FLUX.1-dev, whose shapes are those of FLUX.1
Kontext [dev], the sizes that they have on the hub, to the byte.
"""

_PREFIX = {"text_encoder": "text_model."}  # of the hub's CLIP tensors; transformers 5 drops it


def make_checkpoint(folder: str | Path, size: str = "tiny", seed: int = 0, shards: bool = False) -> Path:
    """Writes a checkpoint with random bfloat16 weights.

    Args:
        folder: where to; made with its parents, and only complete or not at all.
        size: a name in SIZES, or `full`.
        seed: the same seed gives the same bytes.
        shards: write text_encoder_2 and transformer as several safetensors files with an index, as the hub does; full
            size always is.

    Returns:
        The folder.

    Raises:
        ValueError: unknown size.
        FileExistsError: the folder has something in it.
        OSError: at full size, the disk has too little room; nothing was written.
    """
    if size == "full":
        return stream_checkpoint(folder, full_models(), seed)
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose from {', '.join(SIZES)}, full")
    with new_folder(folder) as work:
        vocabularies = write_tokenizers(work)
        models = build_models(SIZES[size], *vocabularies)
        for offset, name in enumerate(sorted(models)):
            randomize(models[name], seed=4 * seed + offset)
        write_models(work, models, shards)
    return Path(folder)


def stream_checkpoint(
    folder: str | Path, models: Models, seed: int = 0, limits: dict[str, tuple[str, int]] = HUB_LIMITS
) -> Path:
    """Writes a checkpoint of any size with random bfloat16 weights, of which memory holds a few MB at a time.

    A tensor's values depend on the seed and its name alone, not on what is written before it nor on torch's threads.
    A run that is killed leaves a hidden folder beside `folder`, without a model_index.json.

    Args:
        folder: where to; made with its parents, and only complete or not at all.
        models: on the meta device, as `full_models` gives them: only their shapes and configs are used.
        limits: stem of the file names and bytes of a shard at most, by component.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder has something in it.
        OSError: the disk has too little room; nothing was written.
    """
    plans = file_plans(models, limits)
    total = sum(sum(files.sizes.values()) for files in plans.values())
    with new_folder(folder) as work:
        _check_room(work, total)
        write_tokenizers(work)
        with tqdm(total=total, unit="B", unit_scale=True, desc=Path(folder).name, mininterval=1) as bar:
            for name, files in plans.items():
                _write_config(work / name, models[name])
                for written in files.write(work / name, partial(random_values, seed, name, models[name].config)):
                    bar.update(written)
        _write_rest(work)
    return Path(folder)


def file_plans(models: Models, limits: dict[str, tuple[str, int]]) -> dict[str, Plan]:
    """The safetensors files of each component, as `stream_checkpoint` writes them."""
    return {name: plan(stem, _shapes(name, models[name]), most) for name, (stem, most) in limits.items()}


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


def write_models(folder: Path, models: Models, shards: bool = False) -> None:
    """Writes the models in bfloat16, the scheduler's config and model_index.json into a checkpoint folder."""
    for name, model in models.items():
        sharded = shards and name in ("text_encoder_2", "transformer")
        bytes_ = 2 * sum(parameter.numel() for parameter in model.parameters())
        limit = {"max_shard_size": bytes_ // 2} if sharded else {}
        model.bfloat16().save_pretrained(folder / name, **limit)
    prefix = _PREFIX["text_encoder"]
    tensors = {prefix + name: tensor for name, tensor in models["text_encoder"].state_dict().items()}
    save_file(tensors, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    _write_rest(folder)


def _write_config(folder: Path, model: torch.nn.Module) -> None:
    """A component's config.json, as its library writes it beside bfloat16 weights."""
    if isinstance(model.config, PretrainedConfig):
        model.config.architectures = [type(model).__name__]
        model.config.dtype = torch.bfloat16
        model.config.save_pretrained(folder)
    else:
        model.save_config(folder)


def _write_rest(folder: Path) -> None:
    """The scheduler's config and, last, model_index.json: without it the folder is no checkpoint."""
    FlowMatchEulerDiscreteScheduler(**_SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=2) + "\n")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"the checkpoint needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there"
        raise OSError(errno.ENOSPC, message, str(folder.parents[1]))


def _shapes(component: str, model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of a model's parameters, under the names that they have on the hub; tied ones once."""
    prefix = _PREFIX.get(component, "")
    return {prefix + name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random FLUX.1 Kontext checkpoint.")
    parser.add_argument("folder")
    parser.add_argument("--size", choices=[*SIZES, "full"], default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", action="store_true", help="several safetensors files with an index")
    arguments = parser.parse_args()
    print(make_checkpoint(arguments.folder, arguments.size, arguments.seed, arguments.shards))


if __name__ == "__main__":
    main()
