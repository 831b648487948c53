"""The safetensors of one component: headers at first, tensors key by key."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import torch
from loguru import logger
from safetensors import SafetensorError, safe_open

from tt_flux_kontext.checkpoint.files import CheckpointError, names_in, present, read_json

STEMS = ("diffusion_pytorch_model", "model")  # of diffusers' files and of transformers'
_DTYPES = ("F32", "BF16", "F16")
_VARIANT = re.compile(rf"(?:{'|'.join(STEMS)})(?:-\d+-of-\d+)?\.(\w+)(?:-\d+-of-\d+)?\.safetensors$")
_SINGLE_FILE = re.compile(r"(model\.diffusion_model\.)?(double|single)_blocks\.\d+\.")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str = "BF16"

    def check_dtype(self, key: str) -> None:
        """Raises `CheckpointError` where the values are of no kind that is read."""
        if self.dtype not in _DTYPES:
            raise CheckpointError(
                f"{key} in {self.file} is {self.dtype}; this model reads {', '.join(_DTYPES)}. "
                "Give the checkpoint in one of those: weights get the device's formats on their way to it."
            )


class TensorFiles:
    """The safetensors of one component: single file, or shards with an index.

    Only headers are read until `read` is called. `entries` maps each key to its `Entry`.

    Args:
        variant: such as fp16, of files with that in their names. Where there are none, plain ones are read.
    """

    def __init__(self, folder: Path, variant: str | None = None):
        self.folder = folder
        self.variant = variant

    @cached_property
    def entries(self) -> dict[str, Entry]:
        index, named, files = self._files()
        entries = {}
        for file in files:
            with open_safetensors(file) as tensors:
                for key in tensors.keys():
                    piece = tensors.get_slice(key)
                    entries[key] = Entry(file, tuple(piece.get_shape()), piece.get_dtype())
        if any(map(_SINGLE_FILE.match, entries)):
            raise CheckpointError(f"{self.folder} has a file in {SINGLE_FILE}")
        lost = [
            f"{key} ({file.name})" for key, file in named.items() if key not in entries or entries[key].file != file
        ]
        if lost:
            raise CheckpointError(f"{index} names tensors that their files don't hold: {_listing(lost)}.")
        return entries

    @property
    def has_variant(self) -> bool:
        """Whether there are files of the variant."""
        return any(present(self.folder / name) for stem in STEMS for name in _names(stem, self.variant))

    def read(self, key: str) -> torch.Tensor:
        """One tensor, in the dtype it has in the file."""
        entry = self.entries[key]
        entry.check_dtype(key)
        with open_safetensors(entry.file) as tensors:
            try:
                return tensors.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{key} in {entry.file} can't be read ({error}). Fetch the file again."
                ) from error

    def _files(self) -> tuple[Path | None, dict[str, Path], list[Path]]:
        """The index, the file that it names for each key, and the files to read; for a single file that alone."""
        for variant in dict.fromkeys((self.variant, None)):
            names = [_names(stem, variant) for stem in STEMS]
            whole = [self.folder / name for name, _ in names if present(self.folder / name)]
            indices = [self.folder / name for _, name in names if present(self.folder / name)]
            for index in indices:
                named = self._named(index)
                absent = sorted({file.name for file in named.values() if not present(file)})
                if not absent:
                    return index, named, sorted(set(named.values()))
                if not whole:
                    raise CheckpointError(f"{index} names {_listing(absent)}, absent from {self.folder}.")
                logger.warning(f"{index} names files that are not there; {whole[0].name}, which is whole, is read.")
            if whole:
                return None, {}, whole[:1]
        raise CheckpointError(f"{self.folder} has no safetensors file of a model.{self._found_instead()}")

    def _named(self, index: Path) -> dict[str, Path]:
        """The file of each key by an index."""
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index} has no weight_map.")
        for name in names.values():
            if not isinstance(name, str) or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                raise CheckpointError(f"{index} names {name!r}, which is no file of {self.folder}.")
        return {key: self.folder / name for key, name in names.items()}  # "./name" is "name"

    def _found_instead(self) -> str:
        names = names_in(self.folder)
        variants = {found[1] for found in map(_VARIANT.match, names) if found}
        others = [name for name in names if name.endswith((".safetensors", ".bin", ".ckpt", ".pt", ".gguf"))]
        hint = "".join(f" For those files give variant='{variant}'." for variant in sorted(variants))
        return f" It has {_listing(others)}.{hint}" if others else ""


SINGLE_FILE = (
    "Black Forest Labs' single-file layout, which holds the transformer alone and is not read. "
    "Give the folder in diffusers' layout, with transformer, vae, text_encoder and so on in folders of their own, "
    "or the id of such a repository on the hub, as black-forest-labs/FLUX.1-Kontext-dev."
)


def is_single_file(file: Path) -> bool:
    """Whether a file is in Black Forest Labs' layout."""
    if file.suffix != ".safetensors" or not present(file):
        return False
    with open_safetensors(file) as tensors:
        return any(map(_SINGLE_FILE.match, tensors.keys()))


def open_safetensors(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        size = f"{file.stat().st_size} bytes" if file.exists() else "absent"
        raise CheckpointError(
            f"{file} ({size}) is no whole safetensors file ({error}). Fetch the file again."
        ) from error


def _names(stem: str, variant: str | None) -> tuple[str, str]:
    """Of the whole file and of the index of shards, as diffusers and transformers have them."""
    infix = f".{variant}" if variant else ""
    return f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"


def _listing(items: list[str], most: int = 8) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
