"""Opening and asking a device."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tt_flux_kontext.backend import choose, ttnn

L1_SMALL_SIZE = 32768  # bytes a core: the sliding-window tables of ttnn.conv2d
EMULATED_SYSTEMS = ("n150", "p100", "p150")
TORCH_DEVICE = "TT_FLUX_KONTEXT_TORCH_DEVICE"  # environment variable: where torch computes for the emulated device


@contextmanager
def open_device(name: str | None = None) -> Iterator["ttnn.MeshDevice"]:
    """Opens one chip: `silicon`, `emulated` or, to name the emulated card, `emulated:p150` (n150 by default).

    Without a name: a card where there is one, else the emulated device. Raises `ValueError` for an unknown name, and
    `RuntimeError` for `silicon` where no card is found.
    """
    backend, _, system = (name or choose()).partition(":")
    if system and (backend != "emulated" or system not in EMULATED_SYSTEMS):
        known = ", ".join(f"emulated:{system}" for system in EMULATED_SYSTEMS)
        raise ValueError(f"Unknown device '{name}': it is silicon, emulated, or one of {known}.")
    if choose(backend) == "emulated":
        emulator = importlib.import_module("tt_flux_kontext.emulator")
        emulator.configure(system=system or "n150", torch_device=os.environ.get(TORCH_DEVICE, "cpu"))
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1), l1_small_size=L1_SMALL_SIZE)
    try:
        yield device
    finally:
        ttnn.close_mesh_device(device)


def dram_bytes(device: "ttnn.MeshDevice") -> tuple[int, int]:
    """(free, total) bytes of a chip's DRAM."""
    view = ttnn.get_memory_view(device, ttnn.BufferType.DRAM)
    return view.total_bytes_free_per_bank * view.num_banks, view.total_bytes_per_bank * view.num_banks
