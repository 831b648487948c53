"""Weights as people pass them on: one file a component, or one with several, in one of a few ways to name tensors."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from tt_flux_kontext.checkpoint import black_forest_labs, ldm
from tt_flux_kontext.checkpoint.black_forest_labs import Source
from tt_flux_kontext.checkpoint.entry import Entry, Tensors
from tt_flux_kontext.checkpoint.files import CheckpointError, is_folder, listing, present
from tt_flux_kontext.checkpoint.gguf_file import is_gguf, read_gguf
from tt_flux_kontext.checkpoint.hub import download_file
from tt_flux_kontext.checkpoint.quantised import with_scales
from tt_flux_kontext.checkpoint.safetensors_file import read_headers

# What the names of a component's tensors begin with in a file that has several, as ComfyUI saves them.
_PREFIXES = {
    "transformer": ("model.diffusion_model.",),
    "text_encoder": ("text_encoders.clip_l.transformer.",),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.",),
    "vae": ("vae.", "first_stage_model."),
}
_OF_OTHERS = ("model.diffusion_model.", "text_encoders.", "vae.", "first_stage_model.")

# Without the prefix, names that only this component has.
_SIGNS = {
    "transformer": re.compile(r"((double|single)_blocks|(single_)?transformer_blocks)\."),
    "text_encoder": re.compile(r"(text_model\.)?encoder\.layers\."),
    "text_encoder_2": re.compile(r"encoder\.block\."),
    "vae": re.compile(r"decoder\.(mid|mid_block|up|up_blocks)\."),
}
# Of a whole CLIP, which goes on to compare texts with pictures.
_UNUSED = re.compile(r"(logit_scale|text_projection\.|visual_projection\.|vision_model\.)")


def find_file(source: str | os.PathLike) -> Path:
    """A file here, or one of the hub by a link or as `owner/name/file`.

    Raises `CheckpointError` when it is neither, and `TypeError` for what is no path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"A file is given by its path or link, not by {type(source).__name__}.")
    path = Path(source)
    if is_folder(path):
        raise CheckpointError(f"{path} is a folder, not a file. FluxKontextPipeline.from_pretrained takes folders.")
    found = path if present(path) else download_file(str(source))
    if found is None:
        raise CheckpointError(f"{path} is not there, and is no link to the Hugging Face hub (owner/name/file).")
    return found


def components_in(file: Path) -> list[str]:
    """The components that a file with several has; none for a file of one."""
    names = _tensors_in(file)
    return [component for component, prefixes in _PREFIXES.items() if any(key.startswith(prefixes) for key in names)]


class SingleFile(Tensors):
    """The tensors of one component in a file.

    Safetensors, plain or in float8 with scales, and of the transformer GGUF. Only headers are read until `read` is
    called. `entries` has diffusers' and transformers' keys; those of tensors that have none are the file's own.
    """

    def __init__(self, file: Path, component: str):
        self.folder = file
        self.component = component

    @cached_property
    def entries(self) -> dict[str, Entry]:
        file, component = self.folder, self.component
        if component != "transformer" and is_gguf(file):
            raise CheckpointError(f"{file} is a GGUF file, which is read for the transformer alone.")
        stored = _without_prefix(_tensors_in(file), component)
        if not any(map(_SIGNS[component].match, stored)):
            raise CheckpointError(f"{file} holds no {component} of FLUX.1. It has {listing(sorted(stored), 4)}.")
        if component.startswith("text_encoder"):
            return {key: entry for key, entry in stored.items() if not _UNUSED.match(key)}
        return _renamed(stored, _sources(stored, component))


def _tensors_in(file: Path) -> Mapping[str, Entry]:
    """By name in the file."""
    if is_gguf(file):
        return read_gguf(file)
    if file.suffix == ".gguf":
        raise CheckpointError(f"{file} is no GGUF file: it does not begin as one. Fetch it again.")
    return with_scales(read_headers([file]))


def _without_prefix(stored: Mapping[str, Entry], component: str) -> dict[str, Entry]:
    """The component's tensors, and those of none. Raises `CheckpointError` for one that is there in both ways."""
    prefix = next((prefix for prefix in _PREFIXES[component] if any(key.startswith(prefix) for key in stored)), "")
    found = {}
    for key, entry in stored.items():
        if not key.startswith(prefix) and key.startswith(_OF_OTHERS):
            continue
        name = key.removeprefix(prefix)
        if name in found:
            raise CheckpointError(f"{entry.file} has {name} twice: once as {prefix}{name}.")
        found[name] = entry
    return found


def _count(keys: Iterable[str], pattern: str) -> int:
    """Different numbers in the keys that begin so."""
    return len({found[1] for found in map(re.compile(pattern).match, keys) if found})


def _sources(stored: Mapping[str, Entry], component: str) -> dict[str, Source]:
    """Of diffusers' modules; none where the names are diffusers' own."""
    if component == "transformer":
        double, single = (_count(stored, rf"{kind}_blocks\.(\d+)\.") for kind in ("double", "single"))
        return black_forest_labs.sources(double, single) if double + single else {}
    levels, layers = _count(stored, r"decoder\.up\.(\d+)\."), _count(stored, r"decoder\.up\.0\.block\.(\d+)\.")
    return {name: Source(theirs) for name, theirs in ldm.modules(levels, layers).items()} if levels else {}


def _renamed(stored: dict[str, Entry], sources: Mapping[str, Source]) -> dict[str, Entry]:
    """By diffusers' keys. What no module has for its source keeps its name, for `survey` to refuse."""
    entries, used = {}, set()
    for module, source in sources.items():
        for parameter, name in (("weight", "weight"), ("bias", "bias"), ("scale", "weight")):
            key = f"{source.module}.{parameter}"
            if key in stored:
                entries[f"{module}.{name}"] = _part(stored[key], key, source)
                used.add(key)
    left = {key: entry for key, entry in stored.items() if key not in used}
    for key in left.keys() & entries.keys():
        raise CheckpointError(f"{left[key].file} has {key} in diffusers' names and in its own.")
    return entries | left


def _part(entry: Entry, key: str, source: Source) -> Entry:
    rows, *others = entry.shape or (1,)
    if rows % source.of:
        raise CheckpointError(f"{key} {list(entry.shape)} in {entry.file} can't be cut into {source.of} equal parts.")
    if ".attn_1." in key and others[1:] == [1, 1]:
        others = others[:1]  # the VAE's attention has convolutions there where diffusers has linear layers
    shape = (rows // source.of * len(source.parts), *others)
    return replace(entry, shape=shape, parts=source.parts, of=source.of)
