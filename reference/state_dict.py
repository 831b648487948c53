"""Tensors in memory, in the place of a checkpoint component's files."""

from pathlib import Path

import torch

from tt_flux_kontext.checkpoint import Entry


class StateDict:
    """What `models.weights.Weights` reads, of tensors by name."""

    folder = Path("memory")

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors
        self.entries = {key: Entry(self.folder, tuple(tensor.shape)) for key, tensor in tensors.items()}

    def read(self, key: str) -> torch.Tensor:
        return self.tensors[key]
