"""A tensor of a component, before its values are read; and what a component is of such tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tt_flux_kontext.checkpoint.files import CheckpointError

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_DTYPES = ("F32", "BF16", "F16", *FLOAT8)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what its file's header says of it. Each kind of file has its own kind, which is read.

    Attributes:
        dtype: as safetensors spells it.
        parts: numbers of those of `of` equal parts of the rows in the file that are the tensor, one below the other.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str = "BF16"
    parts: tuple[int, ...] = (0,)
    of: int = 1

    @property
    def files(self) -> set[Path]:
        """All that its values depend on."""
        return {self.file}

    def check_dtype(self, key: str) -> None:
        """Raises `CheckpointError` where the values are of no kind that is read."""
        if self.dtype not in _DTYPES:
            raise CheckpointError(
                f"{key} in {self.file} is {self.dtype}; this model reads {', '.join(_DTYPES)}. "
                "Give the checkpoint in one of those: weights get the device's formats on their way to it."
            )

    def read(self) -> torch.Tensor:
        """The values: in the dtype that they have in the file, but those of fewer than 16 bits in one that has them."""
        raise NotImplementedError

    def cut(self, rows: Sequence) -> list:
        """The parts, of something with all the rows that the file has."""
        size = self.shape[0] // len(self.parts)
        return [rows[i * size : (i + 1) * size] for i in self.parts]


class Tensors:
    """The tensors of one component.

    Attributes:
        folder: that they are in, or the one file, for messages.
        entries: by key, as diffusers and transformers have them.
        shapes_only: whether they are a plan's, without values.
    """

    folder: Path
    entries: dict[str, Entry]
    shapes_only = False

    def read(self, key: str) -> torch.Tensor:
        entry = self.entries[key]
        entry.check_dtype(key)
        return entry.read()
