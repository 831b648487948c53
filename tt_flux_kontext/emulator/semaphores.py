"""Global semaphores, by which the chips of a collective wait for each other. Nothing waits here; turns are checked."""

import weakref
from collections.abc import Sequence

from .checks import check, check_no_capture
from .device import MeshDevice
from .tensor import Tensor
from .types import BufferType, CoreRangeSet


class GlobalSemaphore:
    def __init__(self, device: MeshDevice):
        self.device = device


def create_global_semaphore(
    mesh_device: MeshDevice, cores: CoreRangeSet, initial_value: int, buffer_type: BufferType = BufferType.L1
) -> GlobalSemaphore:
    """A semaphore for these cores of all chips. Its memory is not counted. Raises RuntimeError in a trace capture."""
    check_no_capture("create_global_semaphore", mesh_device, "writes are")
    return GlobalSemaphore(mesh_device)


def take_turn(
    op: str, device: MeshDevice, semaphores: Sequence[GlobalSemaphore], buffers: Sequence[Tensor] = ()
) -> None:
    """Note that a collective uses these semaphores, and that chips write to these buffers of their neighbours.

    Raises RuntimeError for semaphores of another device, and for what the same collective used the time before. TT-NN
    lets that pass, but a chip may begin while a neighbour still ends the time before, and count for the wrong one, or
    overwrite what the neighbour still reads.
    """
    here = all(semaphore.device is device for semaphore in semaphores)
    check(here, op, "semaphores must be of the tensors' device")
    used = weakref.WeakSet([*semaphores, *buffers])
    again = used.intersection(device.last_used.get(op, ()))
    check(not again, op, "a semaphore or a buffer is used twice in a row: make two sets and use them in turns")
    device.last_used[op] = used
