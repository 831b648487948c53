"""Tensors and the buffers they own."""

import math

import torch

from .checks import check, describe
from .device import MeshDevice
from .types import (
    DRAM_MEMORY_CONFIG,
    TILE_SIZE,
    DataType,
    Layout,
    MemoryConfig,
    Shape,
    StorageType,
    TensorMemoryLayout,
)


def padded_shape(shape, layout: Layout) -> Shape:
    """The shape as stored: tiles pad the last two dimensions to 32 (and make a vector a matrix of 32 rows)."""
    if layout is Layout.ROW_MAJOR:
        return Shape(shape)
    full = (1,) * (2 - len(shape)) + tuple(shape)
    return Shape((*full[:-2], *(math.ceil(size / TILE_SIZE) * TILE_SIZE for size in full[-2:])))


class Buffer:
    """The storage of one or more tensors: a contiguous torch tensor, and the bytes it takes on a device (if any)."""

    def __init__(
        self, values: torch.Tensor, dtype: DataType, layout: Layout, device: MeshDevice | None, memory: MemoryConfig
    ):
        self.values, self.device = None, None  # so that a refused buffer holds nothing to free
        if device is not None:
            check(device.is_open, "allocate", "the device is closed")
            self.pool = device.pools[memory.buffer_type]
            padded = padded_shape(values.shape, layout)
            if layout is Layout.TILE:
                pages, page_bytes = math.prod(padded) // TILE_SIZE**2, dtype.tile_bytes
            else:
                row = padded[-1] if padded else 1
                pages, page_bytes = math.prod(padded) // max(row, 1), row * dtype.element_bytes
            self.bytes_per_bank = self.pool.allocate(pages, page_bytes)
        self.values, self.device = values.contiguous(), device
        self.owners = 1
        if device is not None:
            for trace in device.traces:
                trace.later.add(self)
            if device.capture is not None:
                device.capture.allocated(self)

    def free(self) -> None:
        if self.values is not None and self.device is not None:
            self.pool.release(self.bytes_per_bank)
        self.values = None

    __del__ = free


class Tensor:
    """A tensor on the host (``device`` None) or on a device. Only the logical values are held.

    ``values`` are in the storage dtype of ``dtype`` (see ``formats``). ``unknown_padding``: the padding of its tiles
    may hold anything, infinity included. Made by ``from_torch``, ``empty``, ``zeros`` and the operations, not by users.
    """

    def __init__(
        self,
        values: torch.Tensor,
        dtype: DataType,
        layout: Layout,
        device: MeshDevice | None = None,
        memory_config: MemoryConfig | None = None,
        unknown_padding: bool = False,
    ):
        memory_config = memory_config or DRAM_MEMORY_CONFIG
        check(
            layout is Layout.TILE or not dtype.is_block_float,
            "tensor",
            f"only TILE layout is supported for {dtype.name}, got {layout} for shape {list(values.shape)}",
        )
        check(
            memory_config.memory_layout is TensorMemoryLayout.INTERLEAVED,
            "tensor",
            f"{memory_config.memory_layout} is not emulated, only INTERLEAVED",
        )
        self.shape, self.dtype, self.layout = Shape(values.shape), dtype, layout
        self._memory_config, self._unknown_padding = memory_config, unknown_padding
        self._buffer = Buffer(values, dtype, layout, device, memory_config)
        self._storage = StorageType.HOST if device is None else StorageType.DEVICE

    def view(self, shape) -> "Tensor":
        """A tensor of another shape on the same buffer, freed when the last of them is.

        It may have another count of rows, as far as the same tiles hold them.
        """
        other = object.__new__(Tensor)
        other.__dict__.update(self.__dict__, shape=Shape(shape))
        self._buffer.owners += 1
        return other

    def is_view_of(self, other: "Tensor") -> bool:
        return self._buffer is other._buffer

    def held_by(self, device: MeshDevice) -> "Tensor":
        """A tensor of the same values that takes memory of another chip; torch holds the values once."""
        return Tensor(self.values, self.dtype, self.layout, device, self._memory_config, self._unknown_padding)

    def write(self, values: torch.Tensor) -> None:
        """Replace the values, also those of views on the same buffer."""
        if self._buffer.device is not None and self._buffer.device.capture is not None:
            self._buffer.device.capture.before_write(self._buffer)
        self._buffer.values = values.view(self._buffer.values.shape)

    def hold(self, other: "Tensor") -> None:
        """Replace the values by those of a tensor of the same form, which torch then holds once."""
        if self._buffer.values is not other._buffer.values:
            self.write(other._buffer.values)
            self._unknown_padding = other._unknown_padding

    def __del__(self):
        if hasattr(self, "_buffer"):  # absent when the constructor refused
            self._buffer.owners -= 1

    def __repr__(self) -> str:
        where = self._storage.name.lower() if self.is_allocated() else "deallocated"
        return f"ttnn.Tensor({list(self.shape)}, {self.dtype.name}, {self.layout.name}, {where})"

    @property
    def values(self) -> torch.Tensor:
        """The values in logical shape; rows that were padding are NaN. Raises RuntimeError after deallocation."""
        check(self.is_allocated(), "tensor", f"{describe(self)} was deallocated")
        stored = self._buffer.values
        if stored.numel() == math.prod(self.shape):
            return stored.view(self.shape)
        *outer, rows, width = self.shape
        stored = stored.view(*outer, -1, width)
        return torch.nn.functional.pad(stored, (0, 0, 0, rows - stored.shape[-2]), value=math.nan)

    @property
    def address(self) -> int:
        """Where torch holds the values, by which tensors that share them are known; 0 after deallocation."""
        return self._buffer.values.data_ptr() if self.is_allocated() else 0

    @property
    def padded_shape(self) -> Shape:
        return padded_shape(self.shape, self.layout)

    @property
    def unknown_padding(self) -> bool:
        """Whether it has padding that may hold anything."""
        return self._unknown_padding and self.padded_shape != self.shape

    def memory_config(self) -> MemoryConfig:
        return self._memory_config

    def storage_type(self) -> StorageType:
        return self._storage

    def is_allocated(self) -> bool:
        return self._buffer.values is not None

    def device(self) -> MeshDevice | None:
        """The tensor's device; None for a host or a deallocated tensor."""
        return self._buffer.device if self.is_allocated() else None

    def deallocate(self, force: bool = False) -> None:
        """Free the device memory; a buffer shared with other tensors (views) is only freed if ``force``."""
        if self._storage is StorageType.DEVICE and (force or self._buffer.owners == 1):
            self._buffer.free()


def deallocate(tensor: Tensor, force: bool = True) -> None:
    """Free the tensor's device memory now, also under views of it unless ``force`` is False."""
    tensor.deallocate(force)


def is_tensor_storage_on_device(tensor: Tensor) -> bool:
    return tensor.storage_type() is StorageType.DEVICE


def device_tensor(
    values: torch.Tensor, like: Tensor, *others: Tensor, dtype=None, layout=None, memory_config=None
) -> Tensor:
    """The result of an operation on ``like``'s device; dtype and layout are ``like``'s unless given, memory is DRAM.

    Its padding is unknown where that of an operand, ``like`` or one of the ``others``, is.
    """
    unknown = any(operand.unknown_padding for operand in (like, *others))
    return Tensor(values, dtype or like.dtype, layout or like.layout, like.device(), memory_config, unknown)


def written(op: str, output_tensor: Tensor, values: torch.Tensor, dtype: DataType, *operands: Tensor) -> Tensor:
    """The result of an operation on ``operands`` where a tensor is; that tensor.

    Raises RuntimeError where its shape, dtype or layout are not those of the result.
    """
    form = list(values.shape), dtype, operands[0].layout
    found = list(output_tensor.shape), output_tensor.dtype, output_tensor.layout
    check(found == form, op, f"output_tensor must be {form}, got {found}")
    output_tensor.write(values)
    output_tensor._unknown_padding = any(operand.unknown_padding for operand in operands)
    return output_tensor
