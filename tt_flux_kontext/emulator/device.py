"""Devices of the emulator: their chips' grids, and the memory their tensors occupy.

No data is laid out in banks here; only the bytes are counted, chip by chip and bank by bank as TT-NN's interleaved
allocator does: pages (a tile, or a row of a row-major tensor) go round-robin over the banks, each page padded to the
alignment. Fragmentation is not modelled. Bank sizes and grids are what TT-NN 0.81.1 reports for each system.
"""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .checks import check, check_no_capture
from .types import Arch, BufferType, CoreCoord, FabricConfig, MeshShape


class System(NamedTuple):
    """A mesh of equal chips."""

    arch: Arch
    grid: CoreCoord
    dram_banks: int
    dram_bank_bytes: int
    dram_alignment: int
    l1_bank_bytes: int
    mesh: MeshShape = MeshShape(1, 1)
    torus: bool = False
    """Whether cables join the ends of the mesh's rows and columns."""


_N150 = System(Arch.WORMHOLE_B0, CoreCoord(8, 8), 12, 1_072_693_184, 32, 1_393_312)
_P150 = System(Arch.BLACKHOLE, CoreCoord(11, 10), 8, 4_277_141_376, 64, 1_461_120)
SYSTEMS = {
    "n150": _N150,
    "n300": _N150._replace(mesh=MeshShape(1, 2)),
    "t3k": _N150._replace(mesh=MeshShape(2, 4)),
    "galaxy": _N150._replace(mesh=MeshShape(8, 4), torus=True, grid=CoreCoord(8, 9)),
    "p100": _P150._replace(dram_banks=7),
    "p150": _P150,
    "p300": _P150._replace(mesh=MeshShape(1, 2)),
    "p150x4": _P150._replace(mesh=MeshShape(2, 2)),
}
L1_ALIGNMENT = 16
PAGE = 4096  # a bank's share of the trace region is a multiple of it

_next_device = {"system": "n150", "torch_device": "cpu", "fabric": FabricConfig.DISABLED}
_devices = weakref.WeakSet()


def configure(system: str = "n150", torch_device: str = "cpu") -> None:
    """Choose what the next opened device is: a system of ``SYSTEMS``, its tensors held on ``torch_device``.

    Raises ValueError for an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}: the emulator knows {', '.join(SYSTEMS)}")
    _next_device.update(system=system, torch_device=torch_device)


def set_fabric_config(config: FabricConfig) -> None:
    """Choose what the chips of the next opened mesh exchange data over; without a fabric there are no collectives.

    Raises RuntimeError for a fabric while a device is open.
    """
    any_open = any(device.is_open for device in _devices)
    check(
        config is FabricConfig.DISABLED or not any_open,
        "set_fabric_config",
        f"{config} is not allowed while devices are still open",
    )
    _next_device["fabric"] = config


def configured_system() -> str:
    return _next_device["system"]


def get_num_devices() -> int:
    """How many chips the configured system has."""
    return SYSTEMS[_next_device["system"]].mesh.mesh_size()


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

    shape = MeshShape(1, 1)
    fabric = FabricConfig.DISABLED
    rings = (False, False)

    def __init__(self, system: System, torch_device: str, l1_small_size: int, number: int = 0):
        self.torch_device = torch_device
        self.l1_small_size = l1_small_size
        self.is_open = True
        self.capture, self.traces = None, set()  # see ``trace``
        self.programs, self.last_used = set(), {}
        self._system, self._number = system, number
        cores = system.grid.x * system.grid.y
        self.pools = {
            BufferType.DRAM: MemoryPool(
                BufferType.DRAM, system.dram_banks, system.dram_bank_bytes, system.dram_alignment
            ),
            BufferType.L1: MemoryPool(BufferType.L1, cores, system.l1_bank_bytes - l1_small_size, L1_ALIGNMENT),
        }

    def __repr__(self) -> str:
        return f"MeshDevice({self.shape[0]}x{self.shape[1]} grid, {len(self.chips)} devices)"

    @property
    def chips(self) -> Sequence["MeshDevice"]:
        """Each chip as a mesh of its own, row by row."""
        return (self,)

    def arch(self) -> Arch:
        return self._system.arch

    def compute_with_storage_grid_size(self) -> CoreCoord:
        """Of each chip."""
        return self._system.grid

    def get_num_devices(self) -> int:
        return len(self.chips)

    def get_device_ids(self) -> list[int]:
        """Numbers of the chips, here in the order of the system's mesh."""
        return [chip._number for chip in self.chips]

    def create_submeshes(self, shape: MeshShape) -> list["MeshDevice"]:
        """The meshes of that shape that this one divides into, row by row; they share its chips and their memory.

        Raises RuntimeError for a shape that does not divide it.
        """
        divides = all(whole % part == 0 for whole, part in zip(self.shape, shape, strict=True))
        check(divides, "create_submeshes", f"{self.shape} is not divisible by submesh shape {shape}")
        (rows, columns), (height, width) = shape, self.shape
        grid = [self.chips[start : start + width] for start in range(0, height * width, width)]
        rings = tuple(ring and whole == part for ring, whole, part in zip(self.rings, self.shape, shape))
        return [
            _mesh(
                MeshShape(shape),
                [chip for row in grid[top : top + rows] for chip in row[left : left + columns]],
                self.fabric,
                rings,
            )
            for top in range(0, height, rows)
            for left in range(0, width, columns)
        ]

    @property
    def peak_dram_bytes(self) -> int:
        """The most DRAM in use at once, over a chip's banks, since opening or the last ``reset_peak_dram_bytes``."""
        return max(pool.peak * pool.num_banks for pool in self._dram())

    def reset_peak_dram_bytes(self) -> None:
        """Let the peak start anew from what is in use now."""
        for pool in self._dram():
            pool.peak = pool.allocated

    def _dram(self):
        return [chip.pools[BufferType.DRAM] for chip in self.chips]


class SeveralChips(MeshDevice):
    """A mesh of more than one chip.

    ``fabric`` is what they exchange data over, ``rings`` whether a cable joins the ends of each axis.
    """

    def __init__(self, shape: MeshShape, chips: Sequence[MeshDevice], fabric: FabricConfig, rings: tuple[bool, bool]):
        self.shape, self._chips, self.fabric, self.rings = shape, tuple(chips), fabric, rings
        self.programs, self.last_used = set(), {}
        first = self.chips[0]
        self.torch_device, self.l1_small_size, self._system = first.torch_device, first.l1_small_size, first._system

    @property
    def chips(self) -> Sequence[MeshDevice]:
        return self._chips

    @property
    def is_open(self) -> bool:
        return all(chip.is_open for chip in self.chips)

    @property
    def capture(self):
        return self.chips[0].capture


def _mesh(shape, chips, fabric, rings) -> MeshDevice:
    return SeveralChips(shape, chips, fabric, rings) if len(chips) > 1 else chips[0]


def open_mesh_device(
    mesh_shape=None, l1_small_size: int = 0, trace_region_size: int = 0, num_command_queues: int = 1
) -> MeshDevice:
    """Open the configured device, or as many of its chips as ``mesh_shape`` has (one by default).

    The shape is a line, or fits into the system's mesh, which may be turned. ``l1_small_size``: bytes of L1 set aside
    on each core; convolutions need some. ``trace_region_size``: bytes of each chip's DRAM set aside for traces. All
    ``num_command_queues`` are one here, since work is done when it is asked for. Raises RuntimeError for other shapes,
    and with a fabric for fewer chips than the system has.
    """
    op, shape = "open_mesh_device", MeshShape(mesh_shape or (1, 1))
    system, fabric = SYSTEMS[_next_device["system"]], _next_device["fabric"]
    count = shape.mesh_size()
    check(len(shape) == 2 and count > 0, op, f"a mesh has rows and columns, got {shape}")
    fits = any(shape[0] <= rows and shape[1] <= columns for rows, columns in (system.mesh, system.mesh[::-1]))
    fits = fits or 1 in shape and count <= system.mesh.mesh_size()
    check(fits, op, f"{shape} does not fit into the system's mesh {system.mesh}")
    whole = fabric is FabricConfig.DISABLED or count == system.mesh.mesh_size()
    check(whole, op, f"a fabric needs all chips of {system.mesh}, got {shape}: open it and create submeshes")
    region = math.ceil(trace_region_size / system.dram_banks / PAGE) * PAGE
    system = system._replace(dram_bank_bytes=system.dram_bank_bytes - region)
    chips = [MeshDevice(system, _next_device["torch_device"], l1_small_size, number) for number in range(count)]
    # A line through all chips goes round; two chips are joined by one cable, which makes no ring.
    rings = tuple(size > 2 and (system.torus or size == system.mesh.mesh_size()) for size in shape)
    device = _mesh(shape, chips, fabric, rings)
    _devices.add(device)
    return device


def close_mesh_device(mesh_device: MeshDevice) -> None:
    """Close the device: allocating on it is an error from now on."""
    for chip in mesh_device.chips:
        chip.is_open = False


def synchronize_device(device: MeshDevice) -> None:
    """Wait for the device. Operations are finished when they return, or ordered by torch, so there is nothing to do.

    Raises RuntimeError during a trace capture.
    """
    check_no_capture("synchronize_device", device, "waiting is")


def get_memory_view(device: MeshDevice, buffer_type: BufferType) -> MemoryView:
    """What is in use and free in one kind of a chip's memory, in bytes per bank; of a mesh, its fullest chip's."""
    return max((chip.pools[buffer_type] for chip in device.chips), key=lambda pool: pool.allocated).view()
