"""A checkpoint in Hugging Face layout: a folder per component, tensors read lazily, key by key."""

import os
from collections.abc import Mapping
from pathlib import Path

from tt_flux_kontext.checkpoint.entry import Entry, Tensors
from tt_flux_kontext.checkpoint.files import CheckpointError, check_fields, is_folder, names_in, present, read_json
from tt_flux_kontext.checkpoint.hub import download
from tt_flux_kontext.checkpoint.single_file import SingleFile, components_in, find_file
from tt_flux_kontext.checkpoint.tensors import SINGLE_FILE, STEMS, TensorFiles, is_single_file

__all__ = ["COMPONENTS", "Checkpoint", "CheckpointError", "Entry", "TensorFiles", "Tensors"]

COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
_WITH_WEIGHTS = ("text_encoder", "text_encoder_2", "transformer", "vae")
_CONFIG_FILES = ["*.json"]
_OTHER_FILES = ["*.txt", "*.model"]

# Inpainting and image-to-image are other ways to run the same weights.
_PIPELINES = (
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
)
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


class Checkpoint:
    """A local folder or the id of a repository on the Hugging Face hub.

    Args:
        source: folder, also one of the hub's cache (`models--owner--name`), or hub id such as
            `black-forest-labs/FLUX.1-Kontext-dev`.
        variant: of the weights, such as `fp16` for `model.fp16.safetensors`; components without it have plain files.
        files: by component, a file with its weights in the place of those in its folder, which are not fetched then.

    Raises `CheckpointError` when it is neither, when access to the repository is not granted, when it is of another
    family of models, when a component's folder is missing, or when none has files of the variant.
    """

    def __init__(self, source: str | Path, variant: str | None = None, files: Mapping[str, Path] | None = None):
        files = files or {}
        folder = _local_folder(Path(source))
        if folder is None:
            # Of another family only the configs are fetched, not the many GB of weights.
            repository = str(source)
            if repository.startswith("models--"):
                repository = repository.removeprefix("models--").replace("--", "/")
            _refuse_other_families(download(repository, _CONFIG_FILES))
            weights = _weight_files([name for name in _WITH_WEIGHTS if name not in files], variant)
            folder = download(repository, _CONFIG_FILES + _OTHER_FILES + weights)
        self.folder = folder
        _refuse_other_families(folder)
        missing = [name for name in COMPONENTS if not is_folder(folder / name)]
        if missing:
            single = [name for name in names_in(folder) if is_single_file(folder / name)]
            raise CheckpointError(
                f"{folder} is no FLUX.1 checkpoint: it has no folder {', '.join(missing)}. "
                + (f"Its {single[0]} is in {SINGLE_FILE}" if single else f"A checkpoint has {', '.join(COMPONENTS)}.")
            )
        folders = {name: TensorFiles(folder / name, variant) for name in _WITH_WEIGHTS}
        self._tensors = folders | {name: SingleFile(file, name) for name, file in files.items()}
        if variant and not any(tensors.has_variant for tensors in folders.values()):
            raise CheckpointError(
                f"{folder} has no weights of the variant '{variant}', such as {STEMS[0]}.{variant}.safetensors."
            )

    @classmethod
    def of_files(
        cls, transformer: str | Path, config: str | Path, others: Mapping[str, str | Path | None]
    ) -> "Checkpoint":
        """A checkpoint whose transformer is in a file, and what else of it is.

        Args:
            transformer: the file, or the hub's as `owner/name/file` or a link. What it has of other components is
                taken too.
            config: `source` of all that is in no file.
            others: by component, a file that goes before what the transformer's has of it.
        """
        file = find_file(transformer)
        given = {name: find_file(other) for name, other in others.items() if other is not None}
        return cls(config, files=dict.fromkeys([*components_in(file), "transformer"], file) | given)

    def config(self, component: str, class_name: str) -> dict:
        """The component's config.json, which must be of the model class `class_name`."""
        path = self.folder / component / "config.json"
        config = read_json(path)
        check_fields(path, config, {"_class_name": str, "architectures": tuple[str, ...] | None})
        names = [config["_class_name"]] if "_class_name" in config else config.get("architectures") or []
        if class_name not in names:
            raise CheckpointError(f"{path} is of {', '.join(names) or 'no known class'}, not of {class_name}.")
        if config.get("quantization_config"):
            raise CheckpointError(
                f"{path} has a quantization_config: its weights are quantised, and such are not read. "
                "Give the checkpoint in bfloat16: weights get the device's formats on their way to it."
            )
        return config

    def tensors(self, component: str) -> Tensors:
        return self._tensors[component]


def _local_folder(path: Path) -> Path | None:
    """The folder of that path, of the hub's cache the snapshot in it; None where there is nothing."""
    if not is_folder(path):
        if not os.path.lexists(path):
            return None
        if is_single_file(path):
            raise CheckpointError(f"{path} is in {SINGLE_FILE}")
        raise CheckpointError(
            f"{path} is a file. A checkpoint is a folder with {', '.join(COMPONENTS)}; "
            "FluxKontextPipeline.from_single_file reads the transformer from a file."
        )
    names = names_in(path)
    if "snapshots" not in names or "model_index.json" in names:
        return path
    main = path / "refs" / "main"
    snapshots = [main.read_text().strip()] if present(main) else names_in(path / "snapshots")
    if len(snapshots) != 1:
        raise CheckpointError(f"{path} has {len(snapshots)} snapshots and no refs/main: give one of snapshots/.")
    return path / "snapshots" / snapshots[0]


def _refuse_other_families(folder: Path) -> None:
    """By the class of model_index.json, and by the transformer's class and channels; absent files say nothing."""
    index, transformer = (
        read_json(path) if present(path) else {}
        for path in (folder / "model_index.json", folder / "transformer" / "config.json")
    )
    check_fields(folder / "model_index.json", index, {"_class_name": str})
    check_fields(folder / "transformer" / "config.json", transformer, {"_class_name": str, "in_channels": int})
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


def _weight_files(components: list[str], variant: str | None) -> list[str]:
    """Patterns of the components' weights to fetch."""
    infixes = ["", "-*-of-*"]
    if variant:
        infixes += [f".{variant}", f".{variant}-*-of-*", f"-*-of-*.{variant}"]
    return [f"{name}/{stem}{infix}.safetensors" for name in components for stem in STEMS for infix in infixes]
