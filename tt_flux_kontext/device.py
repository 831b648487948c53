"""Opening and asking a device."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tt_flux_kontext.backend import choose, ttnn
from tt_flux_kontext.mesh import system

L1_SMALL_SIZE = 32768  # bytes a core: the sliding-window tables of ttnn.conv2d
EMULATED_SYSTEMS = ("n150", "n300", "t3k", "galaxy", "p100", "p150", "p300", "p150x4")
TORCH_DEVICE = "TT_FLUX_KONTEXT_TORCH_DEVICE"  # environment variable: where torch computes for the emulated device


@contextmanager
def open_device(name: str | None = None, mesh_shape: tuple[int, int] | None = None) -> Iterator["ttnn.MeshDevice"]:
    """Opens all chips: `silicon`, `emulated` or, to name what is emulated, `emulated:t3k` (n150 by default).

    Args:
        name: without one, a card where there is one, else the emulated device.
        mesh_shape: (rows, columns) of the mesh, where the chips can be seen as several; (1, 1) for one chip.

    Raises `ValueError` for an unknown name and a mesh that the system is not, and `RuntimeError` for `silicon` where no
    card is found.
    """
    backend, _, emulated = (name or choose()).partition(":")
    if emulated and (backend != "emulated" or emulated not in EMULATED_SYSTEMS):
        known = ", ".join(f"emulated:{system}" for system in EMULATED_SYSTEMS)
        raise ValueError(f"Unknown device '{name}': it is silicon, emulated, or one of {known}.")
    if choose(backend) == "emulated":
        emulator = importlib.import_module("tt_flux_kontext.emulator")
        emulator.configure(system=emulated or "n150", torch_device=os.environ.get(TORCH_DEVICE, "cpu"))
    meshes = system().meshes
    shape = tuple(mesh_shape or meshes[0])
    if shape not in {*meshes, (1, 1)}:
        known = " or ".join(f"{rows} x {columns}" for rows, columns in dict.fromkeys((*meshes, (1, 1))))
        raise ValueError(f"This system's chips are no mesh of {shape[0]} x {shape[1]}: it is {known}.")
    several = shape != (1, 1)
    if several:
        ring = set(shape) & set(system().rings)
        ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D_RING if ring else ttnn.FabricConfig.FABRIC_1D)
    try:
        device = ttnn.open_mesh_device(ttnn.MeshShape(*shape), l1_small_size=L1_SMALL_SIZE)
        try:
            yield device
        finally:
            ttnn.close_mesh_device(device)
    finally:
        if several:
            ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)


def dram_bytes(device: "ttnn.MeshDevice") -> tuple[int, int]:
    """(free, total) bytes of a chip's DRAM."""
    view = ttnn.get_memory_view(device, ttnn.BufferType.DRAM)
    return view.total_bytes_free_per_bank * view.num_banks, view.total_bytes_per_bank * view.num_banks
