"""A checkpoint in Hugging Face layout: a folder per component, tensors read lazily, key by key."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
_DTYPES = ("F32", "BF16", "F16")
_CONFIG_FILES = ["*.json"]
_OTHER_FILES = ["*.txt", "*.model", "*/*.safetensors"]  # not the single-file weights at the top

_PIPELINES = ("FluxKontextPipeline", "FluxPipeline")
_WORKS = (
    "What works: FLUX.1 Kontext [dev] (FluxKontextPipeline), and from text alone its relatives FLUX.1 [dev], [schnell] "
    "and Krea [dev] (FluxPipeline)."
)
# What the classes of other families begin with, the longer of two first: their own names don't all say it.
_FAMILIES = {
    "FluxFill": "FLUX.1 Fill",
    "FluxControlNet": "FLUX.1 with a ControlNet",
    "FluxControl": "FLUX.1 Canny or Depth",
    "FluxPriorRedux": "FLUX.1 Redux",
    "Flux2": "FLUX.2",
    "Chroma": "Chroma",
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusion": "Stable Diffusion",
    "SD3": "Stable Diffusion 3",
    "QwenImage": "Qwen-Image",
}
# Transformers that take more than the noise: a mask and a masked picture, or a map of edges or depth.
_CHANNELS = {384: "FLUX.1 Fill", 128: "FLUX.1 Canny or Depth"}


class CheckpointError(ValueError):
    """A checkpoint can't be used. The message names the file, key or field and what to do."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]


class Checkpoint:
    """A local folder or the id of a repository on the Hugging Face hub.

    Args:
        source: folder, or hub id such as `black-forest-labs/FLUX.1-Kontext-dev`.

    Raises `CheckpointError` when it is neither, when access to the repository is not granted, when it is of another
    family of models, or when a component's folder is missing.
    """

    def __init__(self, source: str | Path):
        if Path(source).is_dir():
            self.folder = Path(source)
        else:
            # Of another family only the configs are fetched, not the many GB of weights.
            _refuse_other_families(_download(str(source), _CONFIG_FILES))
            self.folder = _download(str(source), _CONFIG_FILES + _OTHER_FILES)
        _refuse_other_families(self.folder)
        missing = [name for name in COMPONENTS if not (self.folder / name).is_dir()]
        if missing:
            raise CheckpointError(
                f"{self.folder} is no FLUX.1 checkpoint: it has no folder {', '.join(missing)}. "
                f"A checkpoint has {', '.join(COMPONENTS)}."
            )

    def config(self, component: str, class_name: str) -> dict:
        """The component's config.json, which must be of the model class `class_name`."""
        path = self.folder / component / "config.json"
        config = _read_json(path)
        names = [config["_class_name"]] if "_class_name" in config else config.get("architectures") or []
        if class_name not in names:
            raise CheckpointError(f"{path} is of {', '.join(names) or 'no known class'}, not of {class_name}.")
        return config

    def tensors(self, component: str) -> "TensorFiles":
        return TensorFiles(self.folder / component)


class TensorFiles:
    """The safetensors of one component: single file, or shards with an index.

    Only headers are read until `read` is called. `entries` maps each key to its `Entry`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def entries(self) -> dict[str, Entry]:
        entries = {}
        for file in self._files():
            with _open(file) as tensors:
                for key in tensors.keys():
                    entries[key] = Entry(file, tuple(tensors.get_slice(key).get_shape()))
        self._check_index(entries)
        return entries

    def read(self, key: str) -> torch.Tensor:
        """One tensor, in the dtype it has in the file."""
        file = self.entries[key].file
        with _open(file) as tensors:
            if tensors.get_slice(key).get_dtype() not in _DTYPES:
                dtype = tensors.get_slice(key).get_dtype()
                raise CheckpointError(f"{key} in {file} is {dtype}; this model reads {', '.join(_DTYPES)}.")
            try:
                return tensors.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{key} in {file} can't be read ({error}). Fetch the file again.") from error

    def _files(self) -> Iterable[Path]:
        index = self._index
        if index is not None:
            files = [self.folder / name for name in sorted(set(index["weight_map"].values()))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise CheckpointError(f"{self._index_path} names {', '.join(absent)}, absent from {self.folder}.")
            return files
        files = [self.folder / name for name in ("diffusion_pytorch_model.safetensors", "model.safetensors")]
        files = [file for file in files if file.is_file()]
        if not files:
            raise CheckpointError(f"{self.folder} has no safetensors file of a model.")
        return files[:1]

    @property
    def _index_path(self) -> Path | None:
        return next(iter(sorted(self.folder.glob("*.safetensors.index.json"))), None)

    @cached_property
    def _index(self) -> dict | None:
        path = self._index_path
        index = _read_json(path) if path else None
        if index is not None and not isinstance(index.get("weight_map"), dict):
            raise CheckpointError(f"{path} has no weight_map.")
        return index

    def _check_index(self, entries: dict[str, Entry]) -> None:
        if self._index is None:
            return
        lost = [
            f"{key} ({file})"
            for key, file in self._index["weight_map"].items()
            if key not in entries or entries[key].file.name != file
        ]
        if lost:
            raise CheckpointError(f"{self._index_path} names tensors that their files don't hold: {_listing(lost)}.")


def _listing(items: list[str], most: int = 8) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        size = f"{file.stat().st_size} bytes" if file.exists() else "absent"
        raise CheckpointError(
            f"{file} ({size}) is no whole safetensors file ({error}). Fetch the file again."
        ) from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}.") from error


def _refuse_other_families(folder: Path) -> None:
    """By the class of model_index.json, and by the transformer's class and channels; absent files say nothing."""
    index, transformer = (
        _read_json(path) if path.is_file() else {}
        for path in (folder / "model_index.json", folder / "transformer" / "config.json")
    )
    channels = transformer.get("in_channels")
    what = None
    if index.get("_class_name", _PIPELINES[0]) not in _PIPELINES:
        what = _named(index["_class_name"])
    elif transformer.get("_class_name", "FluxTransformer2DModel") != "FluxTransformer2DModel":
        what = _named(transformer["_class_name"])
    elif channels in _CHANNELS:
        what = f"{_CHANNELS[channels]} (its transformer's in_channels is {channels})"
    if what:
        raise CheckpointError(f"{folder} is a checkpoint of {what}, which this package does not run. {_WORKS}")


def _named(class_name: str) -> str:
    """A class, with its family where that is known."""
    family = next((family for start, family in _FAMILIES.items() if class_name.startswith(start)), None)
    return f"{family} ({class_name})" if family else class_name


def _download(repository: str, patterns: list[str]) -> Path:
    """Fetches files of a hub repository (or finds them in the local cache) and returns its folder."""
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CheckpointError(
            f"Access to {repository} is gated.\n"
            f"Accept its licence on the model's page, https://huggingface.co/{repository}, signed in.\n"
            "Then sign in here, with `hf auth login` or with a token in HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"'{repository}' is neither a folder here nor a repository that you can read on the Hugging Face hub.\n"
            "For a folder, check the path. For a repository, check its id (owner/name).\n"
            "If it is private or gated, sign in with `hf auth login` or with a token in HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repository} is not in the local cache and the Hugging Face hub can't be reached: {error}\n"
            "Check the network, or fetch it elsewhere with `hf download` and copy the folder here.\n"
            "Then give the folder in place of the id."
        ) from error
