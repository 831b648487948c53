"""Opening and asking a device."""

import importlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from loguru import logger

from tt_flux_kontext.backend import EMULATED_SYSTEMS, choose, ttnn
from tt_flux_kontext.mesh import system

L1_SMALL_SIZE = 32768  # bytes a core: the sliding-window tables of ttnn.conv2d
TORCH_DEVICE = "TT_FLUX_KONTEXT_TORCH_DEVICE"  # environment variable: where torch computes for the emulated device

_open: "list[ttnn.MeshDevice]" = []  # by `open_device`, and their parts


def choose_device(name: str | None = None) -> tuple[str, str]:
    """The backend of a device's name, for this process, and the system that it would emulate.

    Raises what `open_device` raises for a name.
    """
    backend, _, emulated = (name or choose()).partition(":")
    if emulated and (backend != "emulated" or emulated not in EMULATED_SYSTEMS):
        known = ", ".join(f"emulated:{system}" for system in EMULATED_SYSTEMS)
        raise ValueError(f"Unknown device '{name}': it is silicon, emulated, or one of {known}.")
    return choose(backend), emulated or "n150"


@contextmanager
def open_device(
    name: str | None = None,
    mesh_shape: tuple[int, int] | None = None,
    *,
    trace_region_size: int = 0,
    num_command_queues: int = 1,
) -> Iterator["ttnn.MeshDevice"]:
    """Opens all chips: `silicon`, `emulated` or, to name what is emulated, `emulated:t3k` (n150 by default).

    Args:
        name: without one, a card where there is one, else the emulated device.
        mesh_shape: (rows, columns) of the mesh, where the chips can be seen as several; (1, 1) for one chip.
        trace_region_size: bytes of each chip's DRAM set aside for traces, which have to do with them then, where
            weights stay from edit to edit with 300 MB more than an edit's steps; with 0 each takes what it needs when
            it is captured.
        num_command_queues: edits use the first one.

    Raises `ValueError` for an unknown name and a mesh that the system is not, and `RuntimeError` for `silicon` where no
    card is found, or where several chips can't be opened. Of a system that isn't known here it opens one chip, with a
    warning.
    """
    backend, emulated = choose_device(name)
    if backend == "emulated":
        emulator = importlib.import_module("tt_flux_kontext.emulator")
        emulator.configure(system=emulated, torch_device=os.environ.get(TORCH_DEVICE, "cpu"))
    meshes = system().meshes
    shape = tuple(mesh_shape or meshes[0])
    if shape not in {*meshes, (1, 1)}:
        known = " or ".join(map(_product, dict.fromkeys((*meshes, (1, 1)))))
        raise ValueError(f"This system's chips are no mesh of {_product(shape)}: it is {known}.")
    chips, used = ttnn.get_num_devices(), math.prod(shape)
    if used < chips and not mesh_shape:
        logger.warning(
            f"Of the {chips} chips that TT-NN finds {used} will be used: it calls the system "
            f"{ttnn.cluster.get_cluster_type().name}. If it is another one, a cable may be missing or loose."
        )
    with ExitStack() as at_the_end:
        try:
            if shape != (1, 1):
                ring = set(shape) & set(system().rings)
                ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D_RING if ring else ttnn.FabricConfig.FABRIC_1D)
                at_the_end.callback(ttnn.set_fabric_config, ttnn.FabricConfig.DISABLED)
            device = ttnn.open_mesh_device(
                ttnn.MeshShape(*shape),
                l1_small_size=L1_SMALL_SIZE,
                trace_region_size=trace_region_size,
                num_command_queues=num_command_queues,
            )
        except RuntimeError as error:
            if chips == 1:
                raise
            raise RuntimeError(
                f"TT-NN can't open a mesh of {_product(shape)} of the {chips} chips that it finds: a cable may be "
                "missing or loose. With TT_VISIBLE_DEVICES=0 it sees the first card only."
            ) from error
        at_the_end.callback(ttnn.close_mesh_device, device)
        before = len(_open)
        _open.append(device)
        try:
            yield device
        finally:
            del _open[before:]


def is_open(device: "ttnn.MeshDevice") -> bool:
    """Whether `open_device` has opened it, and not closed it yet; TT-NN doesn't tell of others."""
    return any(each is device for each in _open)


def submeshes(device: "ttnn.MeshDevice", count: int) -> "list[ttnn.MeshDevice]":
    """Cuts a mesh into equal parts, to work side by side: a pipeline on each, say.

    A part has the longest axis that it can have whole, which may be a ring: of a Galaxy's 8 x 4 chips four parts are
    8 x 1, eight are 1 x 4. Raises `ValueError` for a count that the mesh can't be cut into.
    """
    chips = math.prod(device.shape)
    forms = list(itertools.product(*map(_divisors, device.shape)))
    fitting = [form for form in forms if count * math.prod(form) == chips]
    if not fitting:
        counts = ", ".join(map(str, sorted({chips // math.prod(form) for form in forms})))
        raise ValueError(f"{_product(device.shape)} chips can't be cut into {count} equal parts, only into {counts}.")

    def longest_whole_axis(form: tuple[int, int]) -> int:
        return max((part for part, length in zip(form, device.shape) if part == length), default=0)

    parts = device.create_submeshes(ttnn.MeshShape(*max(fitting, key=longest_whole_axis)))
    if is_open(device):
        _open.extend(parts)
    return parts


def dram_bytes(device: "ttnn.MeshDevice") -> tuple[int, int]:
    """(free, total) bytes of a chip's DRAM."""
    view = ttnn.get_memory_view(device, ttnn.BufferType.DRAM)
    return view.total_bytes_free_per_bank * view.num_banks, view.total_bytes_per_bank * view.num_banks


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
