"""Devices of the emulator: their grids, and the memory their tensors occupy.

No data is laid out in banks here; only the bytes are counted, bank by bank as TT-NN's interleaved allocator does:
pages (a tile, or a row of a row-major tensor) go round-robin over the banks, each page padded to the alignment.
Fragmentation is not modelled. Bank sizes and grids are what TT-NN 0.81.1 reports for each system.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from .checks import check
from .types import Arch, BufferType, CoreCoord, MeshShape


class System(NamedTuple):
    arch: Arch
    grid: CoreCoord
    dram_banks: int
    dram_bank_bytes: int
    dram_alignment: int
    l1_bank_bytes: int


SYSTEMS = {
    "n150": System(Arch.WORMHOLE_B0, CoreCoord(8, 8), 12, 1_072_693_184, 32, 1_393_312),
    "p100": System(Arch.BLACKHOLE, CoreCoord(11, 10), 7, 4_277_141_376, 64, 1_461_120),
    "p150": System(Arch.BLACKHOLE, CoreCoord(11, 10), 8, 4_277_141_376, 64, 1_461_120),
}
L1_ALIGNMENT = 16

_next_device = {"system": "n150", "torch_device": "cpu"}


def configure(system: str = "n150", torch_device: str = "cpu") -> None:
    """Choose what the next opened device is: a system of ``SYSTEMS``, its tensors held on ``torch_device``.

    Raises ValueError for an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}: the emulator knows {', '.join(SYSTEMS)}")
    _next_device.update(system=system, torch_device=torch_device)


@dataclass(frozen=True)
class MemoryView:
    """A snapshot of one kind of memory; bytes are per bank, as in TT-NN."""

    num_banks: int
    total_bytes_per_bank: int
    total_bytes_allocated_per_bank: int
    total_bytes_free_per_bank: int
    largest_contiguous_bytes_free_per_bank: int


class MemoryPool:
    """Counts the bytes of one kind of memory, by bank."""

    def __init__(self, kind: BufferType, num_banks: int, bank_bytes: int, alignment: int):
        self.kind, self.num_banks, self.bank_bytes, self.alignment = kind, num_banks, bank_bytes, alignment
        self.allocated = self.peak = 0

    def allocate(self, pages: int, page_bytes: int) -> int:
        """Take ``pages`` pages; return the bytes taken per bank. Raises RuntimeError when they do not fit."""
        needed = math.ceil(pages / self.num_banks) * math.ceil(page_bytes / self.alignment) * self.alignment
        free = self.bank_bytes - self.allocated
        check(
            needed <= free,
            "allocate",
            f"Out of Memory: Not enough space to allocate {pages * page_bytes} B {self.kind.name} buffer across "
            f"{self.num_banks} banks, where each bank needs to store {needed} B, but bank size is {self.bank_bytes} B "
            f"(allocated: {self.allocated} B, free: {free} B, largest free block: {free} B).",
        )
        self.allocated += needed
        self.peak = max(self.peak, self.allocated)
        return needed

    def release(self, bytes_per_bank: int) -> None:
        self.allocated -= bytes_per_bank

    def view(self) -> MemoryView:
        free = self.bank_bytes - self.allocated
        return MemoryView(self.num_banks, self.bank_bytes, self.allocated, free, free)


class MeshDevice:
    """A 1 x 1 mesh: one emulated chip. ``torch_device`` is where torch keeps its tensors."""

    def __init__(self, system: System, torch_device: str, l1_small_size: int):
        self.shape = MeshShape(1, 1)
        self.torch_device = torch_device
        self.l1_small_size = l1_small_size
        self.is_open = True
        self._system = system
        cores = system.grid.x * system.grid.y
        self.pools = {
            BufferType.DRAM: MemoryPool(
                BufferType.DRAM, system.dram_banks, system.dram_bank_bytes, system.dram_alignment
            ),
            BufferType.L1: MemoryPool(BufferType.L1, cores, system.l1_bank_bytes - l1_small_size, L1_ALIGNMENT),
        }

    def __repr__(self) -> str:
        return "MeshDevice(1x1 grid, 1 devices)"

    def arch(self) -> Arch:
        return self._system.arch

    def compute_with_storage_grid_size(self) -> CoreCoord:
        return self._system.grid

    def get_num_devices(self) -> int:
        return 1

    @property
    def peak_dram_bytes(self) -> int:
        """The most DRAM in use at once since opening or the last ``reset_peak_dram_bytes``, over all banks."""
        pool = self.pools[BufferType.DRAM]
        return pool.peak * pool.num_banks

    def reset_peak_dram_bytes(self) -> None:
        """Let the peak start anew from what is in use now."""
        pool = self.pools[BufferType.DRAM]
        pool.peak = pool.allocated


def open_mesh_device(
    mesh_shape=None, l1_small_size: int = 0, trace_region_size: int = 0, num_command_queues: int = 1
) -> MeshDevice:
    """Open the configured device. Raises RuntimeError for a mesh of more than one chip.

    ``l1_small_size``: bytes of L1 set aside on each core; convolutions need some. ``trace_region_size`` and
    ``num_command_queues`` are accepted for the sake of callers, and have no counterpart here.
    """
    mesh_shape = tuple(mesh_shape or (1, 1))
    check(math.prod(mesh_shape) == 1, "open_mesh_device", f"mesh shape {list(mesh_shape)}: only one chip is emulated")
    return MeshDevice(SYSTEMS[_next_device["system"]], _next_device["torch_device"], l1_small_size)


def close_mesh_device(mesh_device: MeshDevice) -> None:
    """Close the device: allocating on it is an error from now on."""
    mesh_device.is_open = False


def synchronize_device(device: MeshDevice) -> None:
    """Wait for the device. Operations are finished when they return, or ordered by torch, so there is nothing to do."""


def get_memory_view(device: MeshDevice, buffer_type: BufferType) -> MemoryView:
    """What is in use and free in one kind of the device's memory, in bytes per bank."""
    return device.pools[buffer_type].view()
