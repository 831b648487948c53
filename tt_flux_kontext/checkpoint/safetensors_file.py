"""Safetensors files: their headers, and tensors or rows of them by the headers' entries."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tt_flux_kontext.checkpoint.entry import FLOAT8, Entry
from tt_flux_kontext.checkpoint.files import CheckpointError

QUANTISATION = "comfy_quant"  # what a layer's is, in a tensor of bytes beside its weight
_HEADER = "_quantization_metadata"  # or of all layers, in the header


@dataclass(frozen=True, kw_only=True)
class StoredTensor(Entry):
    """A tensor under its name in the file.

    Attributes:
        scale: that its values are multiplied by: one number, or one for each row in the file.
    """

    key: str
    scale: "StoredTensor | None" = None

    @property
    def files(self) -> set[Path]:
        return {self.file} | (self.scale.files if self.scale else set())

    def read(self) -> torch.Tensor:
        with open_safetensors(self.file) as tensors:
            try:
                if self.of == 1:
                    value = tensors.get_tensor(self.key)
                else:
                    value = torch.cat(self.cut(tensors.get_slice(self.key)))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{self.key} in {self.file} can't be read ({error}). Fetch the file again."
                ) from error
        if self.scale:
            scale = self.scale.read().float().flatten()
            if scale.numel() > 1 and self.of > 1:
                scale = torch.cat(self.cut(scale))
            value = value.float() * scale.reshape(-1, *[1] * (value.ndim - 1))
        elif self.dtype in FLOAT8:
            value = value.bfloat16()  # which has all their numbers
        return value.reshape(self.shape)


@dataclass(frozen=True)
class Headers:
    """Of some files together.

    Attributes:
        entries: by name in the file.
        formats: by layer, what the files say of its quantisation.
    """

    entries: dict[str, StoredTensor]
    formats: dict[str, dict]


def read_headers(files: Iterable[Path]) -> Headers:
    headers = Headers({}, {})
    for file in files:
        with open_safetensors(file) as tensors:
            for key in tensors.keys():
                piece = tensors.get_slice(key)
                headers.entries[key] = StoredTensor(file, tuple(piece.get_shape()), piece.get_dtype(), key=key)
                layer, _, name = key.rpartition(".")
                if name == QUANTISATION:
                    text = tensors.get_tensor(key).flatten().view(torch.uint8).numpy().tobytes()
                    headers.formats[layer] = _object(text, f"{key} in {file}")
            text = (tensors.metadata() or {}).get(_HEADER, '{"layers": {}}')
            headers.formats.update(_object(text, f"{_HEADER} in the header of {file}", "layers"))
    return headers


def open_safetensors(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        size = f"{file.stat().st_size} bytes" if file.exists() else "absent"
        raise CheckpointError(
            f"{file} ({size}) is no whole safetensors file ({error}). Fetch the file again."
        ) from error


def _object(text: str | bytes, what: str, *fields: str) -> dict:
    """The object in JSON, or in a field of it."""
    try:
        value = json.loads(text)
        for field in fields:
            value = value[field]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise CheckpointError(f"{what} can't be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is no object with fields.")
    return value
