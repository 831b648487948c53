"""Safetensors files of bfloat16 that are larger than memory: planned from shapes alone, then written piece by piece.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, little-endian; a JSON header with
each tensor's dtype, shape and place; the bytes of the tensors. Files come out as safetensors itself writes them.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory

Shapes = dict[str, tuple[int, ...]]
_ITEM = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Plan:
    """The files of one component.

    Attributes:
        stem: of the file names, such as `model`.
        files: keys by file name, in the order of their bytes.
        shapes: of all tensors.
        index: which shard has which tensor; None for a single file.
    """

    stem: str
    files: dict[str, list[str]]
    shapes: Shapes
    index: dict | None

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by file name, headers included."""
        return {
            name: len(self._header(keys)) + sum(_bytes(self.shapes[key]) for key in keys)
            for name, keys in self.files.items()
        }

    def index_text(self) -> str:
        """The index's file, as transformers and diffusers write it."""
        return json.dumps(self.index, indent=2, sort_keys=True) + "\n"

    def write(self, folder: Path, values: Callable[[str, tuple[int, ...]], Iterator[torch.Tensor]]) -> Iterator[int]:
        """Writes the files into a folder, the index last.

        Args:
            values: a tensor's elements by its key and shape, as flat bfloat16 pieces in order.

        Yields:
            The bytes of each piece, once they are written.
        """
        for name, keys in self.files.items():
            with open(folder / name, "wb") as file:
                yield file.write(self._header(keys))
                for key in keys:
                    for piece in values(key, self.shapes[key]):
                        yield file.write(piece.view(torch.int16).numpy())
        if self.index:
            (folder / f"{self.stem}.safetensors.index.json").write_text(self.index_text())

    def _header(self, keys: list[str]) -> bytes:
        entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        end = 0
        for key in keys:
            begin, end = end, end + _bytes(self.shapes[key])
            entries[key] = {"dtype": "BF16", "shape": list(self.shapes[key]), "data_offsets": [begin, end]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors start aligned
        return struct.pack("<Q", len(text)) + text


def plan(stem: str, shapes: Shapes, limit: int) -> Plan:
    """Splits tensors into files of at most `limit` bytes by huggingface_hub's rule.

    Args:
        stem: of the file names, such as `model`.
        shapes: in the order of the model's parameters, by which they are dealt out.
    """
    split = split_state_dict_into_shards_factory(
        shapes, get_storage_size=_bytes, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=limit
    )
    files = {name: sorted(keys) for name, keys in split.filename_to_tensors.items()}
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    return Plan(stem, files, shapes, index if split.is_sharded else None)


def _bytes(shape: tuple[int, ...]) -> int:
    return _ITEM * math.prod(shape)
