"""GGUF files of the FLUX.1 transformer, in the layouts that the package `gguf` turns into numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tt_flux_kontext.checkpoint.entry import Entry
from tt_flux_kontext.checkpoint.files import CheckpointError

_ARCHITECTURE = "flux"


@dataclass(frozen=True, kw_only=True)
class GGUFTensor(Entry):
    """A tensor in blocks of one of GGML's types. What `read` gives is float32.

    Attributes:
        offset: of its first byte.
        size: bytes in the file.
        kind: gguf's `GGMLQuantizationType`.
    """

    offset: int
    size: int
    kind: int

    def read(self) -> torch.Tensor:
        from gguf.quants import dequantize

        try:
            blocks = np.memmap(self.file, np.uint8, "r", self.offset, (self.size,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.file} can't be read ({error}). Fetch the file again.") from error
        if len(self.shape) == 1:  # blocks may go over the borders of parts
            value = torch.from_numpy(dequantize(np.array(blocks), self.kind))
            return torch.cat(self.cut(value))
        rows = self.shape[0] // len(self.parts) * self.of
        value = dequantize(np.concatenate(self.cut(blocks.reshape(rows, -1))), self.kind)
        return torch.from_numpy(value).reshape(self.shape)


def is_gguf(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def read_gguf(file: Path) -> dict[str, GGUFTensor]:
    """By name in the file.

    Raises `CheckpointError` where `gguf` is not installed, for a file that is not whole or of another model, and for a
    type that `gguf` can't dequantise.
    """
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"{file} is a GGUF file. To read it takes another package: pip install gguf") from None
    try:
        reader = gguf.GGUFReader(file)
        if reader.byte_order != "I":
            raise ValueError("its bytes are in another order than this machine's")
        architecture = reader.get_field("general.architecture")
        architecture = architecture.contents() if architecture else _ARCHITECTURE  # not all writers say it
    except (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) is no whole GGUF file ({error}). Fetch the file again."
        ) from error
    if architecture != _ARCHITECTURE:
        raise CheckpointError(f"{file} is a GGUF file of {architecture}: only the FLUX.1 transformer's are read.")
    kinds = {tensor.tensor_type for tensor in reader.tensors}
    refused = sorted(kind.name for kind in kinds if not _is_read(kind))
    if refused:
        raise CheckpointError(f"{file} has tensors in {', '.join(refused)}, which the package gguf can't dequantise.")
    return {
        tensor.name: GGUFTensor(
            file,
            tuple(reversed(tensor.shape.tolist())),
            "F32",
            offset=int(tensor.data_offset),
            size=int(tensor.n_bytes),
            kind=tensor.tensor_type,
        )
        for tensor in reader.tensors
    }


def _is_read(kind) -> bool:
    """Whether gguf turns a block of this kind into numbers."""
    import gguf

    _, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
