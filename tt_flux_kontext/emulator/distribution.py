"""How tensors are split over the chips of a mesh and put together again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .checks import check
from .device import MeshDevice
from .types import MeshShape


@dataclass(frozen=True)
class PlacementShard:
    """Along an axis of the mesh, chips hold equal parts of a dimension, which may count from the end."""

    dim: int


@dataclass(frozen=True)
class PlacementReplicate:
    """Along an axis of the mesh, all chips hold the same."""


@dataclass(frozen=True)
class MeshMapperConfig:
    """A placement for each axis of the mesh."""

    placements: Sequence[PlacementShard | PlacementReplicate]
    mesh_shape_override: MeshShape | None = None


@dataclass(frozen=True)
class MeshComposerConfig:
    """For each axis of the mesh the dimension along which its chips' parts are joined."""

    dims: Sequence[int]
    mesh_shape_override: MeshShape | None = None


@dataclass(frozen=True)
class MeshMapper:
    shape: MeshShape
    placements: Sequence[PlacementShard | PlacementReplicate]

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """A part for each chip, row by row; of replicated parts the same object.

        Raises RuntimeError for dimensions that the tensor does not have, that are repeated, or that do not divide.
        """
        op = "from_torch"
        _check_dims(op, [p.dim for p in self.placements if isinstance(p, PlacementShard)], tensor.dim())
        parts = [tensor]
        for chips, placement in zip(self.shape, self.placements):
            if isinstance(placement, PlacementReplicate):
                parts = [part for part in parts for _ in range(chips)]
                continue
            size = tensor.shape[placement.dim]
            even = size % chips == 0
            check(even, op, f"dimension {placement.dim} of {list(tensor.shape)} has no {chips} equal shards: pad it")
            pieces = {id(part): part.split(size // chips, placement.dim) for part in parts}
            parts = [piece for part in parts for piece in pieces[id(part)]]
        return parts


@dataclass(frozen=True)
class MeshComposer:
    shape: MeshShape
    dims: Sequence[int]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor of the chips' parts. What chips hold alike is repeated.

        Raises RuntimeError for another count of parts, and for dimensions that they do not have or that are repeated.
        """
        op = "to_torch"
        count = self.shape.mesh_size()
        check(len(parts) == count, op, f"the composer is for {count} shards, got {len(parts)}")
        _check_dims(op, self.dims, parts[0].dim())
        for chips, dim in zip(reversed(self.shape), reversed(self.dims)):
            parts = [torch.cat(parts[i : i + chips], dim) for i in range(0, len(parts), chips)]
        return parts[0]


def create_mesh_mapper(mesh_device: MeshDevice | MeshShape, config: MeshMapperConfig) -> MeshMapper:
    """For ``from_torch``. Raises RuntimeError unless there is a placement for each axis of the mesh."""
    shape = _shape("create_mesh_mapper", mesh_device, config, len(config.placements))
    return MeshMapper(shape, tuple(config.placements))


def create_mesh_composer(mesh_device: MeshDevice | MeshShape, config: MeshComposerConfig) -> MeshComposer:
    """For ``to_torch``. Raises RuntimeError unless there is a dimension for each axis of the mesh."""
    return MeshComposer(_shape("create_mesh_composer", mesh_device, config, len(config.dims)), tuple(config.dims))


def _shape(op, mesh_device, config, axes) -> MeshShape:
    shape = mesh_device.shape if isinstance(mesh_device, MeshDevice) else mesh_device
    override = config.mesh_shape_override
    check(override in (None, shape), op, f"only the mesh's own shape {shape} is emulated, got {override}")
    check(axes == len(shape), op, f"{axes} entries for the {len(shape)} axes of {shape}")
    return shape


def _check_dims(op, dims, rank) -> None:
    check(all(-rank <= dim < rank for dim in dims), op, f"invalid dimension: {list(dims)} of {rank}")
    check(len({dim % rank for dim in dims}) == len(dims), op, f"dims must be unique, got {list(dims)}")
