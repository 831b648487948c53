"""An adapter's file: on this machine, or on the Hugging Face hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError

from tt_flux_kontext.checkpoint.files import is_folder, names_in, present, read_json
from tt_flux_kontext.checkpoint.hub import download, list_files
from tt_flux_kontext.checkpoint.safetensors_file import open_safetensors
from tt_flux_kontext.checkpoint.single_file import find_file

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+$")
_ENDINGS = (".safetensors", ".bin", ".pt", ".ckpt", ".gguf")  # of files: a repository's name may have points too
# Of a folder that PEFT itself wrote: the weights, and beside them what diffusers has in their header.
_PEFT_WEIGHTS, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def read_adapter(
    source: str | Path | Mapping[str, torch.Tensor], weight_name: str | None
) -> tuple[dict[str, torch.Tensor], Mapping[str, str], str]:
    """Tensors, header fields and name of an adapter.

    Args:
        source: a file, a folder, a hub id, or the tensors themselves.
        weight_name: of the file in the folder or repository; needed where there are several.

    Raises `CheckpointError` where it can't be found or read, and `ValueError` for more than one that it could be.
    """
    if isinstance(source, Mapping):
        for key, tensor in source.items():
            if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
                raise TypeError(f"An adapter's state dict has tensors by name, but {key!r} is {type(tensor).__name__}.")
        copies = {key: _readable(tensor.detach().cpu().clone()) for key, tensor in source.items()}
        return copies, {}, "the state dict"
    if not isinstance(source, str | Path):
        raise TypeError(f"An adapter is a path, a hub id or a dict of tensors, not {type(source).__name__}.")
    file = _file(source, weight_name)
    if file.suffix.lower() != ".safetensors":
        raise ValueError(f"{file} is no .safetensors file. Others, which can hold programs, are not read.")
    with open_safetensors(file) as opened:
        header = dict(opened.metadata() or {})
        try:  # copies: what safetensors gives changes with the file while that is written over
            tensors = {key: _readable(opened.get_tensor(key).clone()) for key in opened.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} can't be read ({error}). Fetch the file again.") from error
    config = file.with_name(_PEFT_CONFIG)
    if file.name == _PEFT_WEIGHTS and present(config):
        settings = {f"transformer.{name}": value for name, value in read_json(config).items()}
        header.setdefault(LORA_ADAPTER_METADATA_KEY, json.dumps(settings))
    return tensors, header, str(file)


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Of float8 in bfloat16, which has all its numbers: torch computes nothing with it."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _file(source: str | Path, weight_name: str | None) -> Path:
    path = Path(source)
    if is_folder(path):
        return path / (weight_name or _only(names_in(path), path))
    if present(path) or path.suffix.lower() in _ENDINGS or not _REPOSITORY.match(str(source)):
        return find_file(source)
    name = weight_name or _only(list_files(str(source)), source)
    return download(str(source), [name, _PEFT_CONFIG]) / name


def _only(names: list[str], where: str | Path) -> str:
    """The file that a folder or repository is for."""
    found = [name for name in names if name.endswith(".safetensors")]
    for usual in (LORA_WEIGHT_NAME_SAFE, _PEFT_WEIGHTS):
        if usual in found:
            return usual
    if len(found) != 1:
        which = f"several .safetensors files ({', '.join(found[:8])})" if found else "no .safetensors file"
        raise ValueError(f"{where} has {which}: give the name of the LoRA's as `weight_name`.")
    return found[0]
