"""The safetensors in one component's folder: headers at first, tensors key by key."""

import re
from functools import cached_property
from pathlib import Path, PurePath

from loguru import logger

from tt_flux_kontext.checkpoint.entry import Entry, Tensors
from tt_flux_kontext.checkpoint.files import CheckpointError, listing, names_in, present, read_json
from tt_flux_kontext.checkpoint.quantised import with_scales
from tt_flux_kontext.checkpoint.safetensors_file import open_safetensors, read_headers

STEMS = ("diffusion_pytorch_model", "model")  # of diffusers' files and of transformers'
_VARIANT = re.compile(rf"(?:{'|'.join(STEMS)})(?:-\d+-of-\d+)?\.(\w+)(?:-\d+-of-\d+)?\.safetensors$")
_SINGLE_FILE = re.compile(r"(model\.diffusion_model\.)?(double|single)_blocks\.\d+\.")


class TensorFiles(Tensors):
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
        headers = read_headers(files)
        entries = headers.entries
        if any(map(_SINGLE_FILE.match, entries)):
            raise CheckpointError(f"{self.folder} has a file in {SINGLE_FILE}")
        lost = [
            f"{key} ({file.name})" for key, file in named.items() if key not in entries or entries[key].file != file
        ]
        if lost:
            raise CheckpointError(f"{index} names tensors that their files don't hold: {listing(lost)}.")
        return with_scales(headers)

    @property
    def has_variant(self) -> bool:
        """Whether there are files of the variant."""
        return any(present(self.folder / name) for stem in STEMS for name in _names(stem, self.variant))

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
                    raise CheckpointError(f"{index} names {listing(absent)}, absent from {self.folder}.")
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
        return f" It has {listing(others)}.{hint}" if others else ""


SINGLE_FILE = (
    "Black Forest Labs' single-file layout, which holds the transformer alone. FluxKontextPipeline.from_single_file "
    "reads it, and takes all else from the folder in diffusers' layout, or the id on the hub, that `config` names."
)


def is_single_file(file: Path) -> bool:
    """Whether a file is in Black Forest Labs' layout."""
    if file.suffix != ".safetensors" or not present(file):
        return False
    with open_safetensors(file) as tensors:
        return any(map(_SINGLE_FILE.match, tensors.keys()))


def _names(stem: str, variant: str | None) -> tuple[str, str]:
    """Of the whole file and of the index of shards, as diffusers and transformers have them."""
    infix = f".{variant}" if variant else ""
    return f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"
