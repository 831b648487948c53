"""Tensors on several chips, and the operations of one chip on each of them.

A tensor on a mesh holds a tensor per chip. What is equal on several chips is held, and computed, once: its tensors
share their values, and differ in the chip whose memory they take. What is written to holds other values from then on.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence

from .checks import check, describe
from .device import MeshDevice, SeveralChips
from .tensor import Tensor
from .types import MeshShape


class MeshTensor(Tensor):
    """A tensor on more than one chip, or on the host for them: ``shards``, one a chip, row by row of the mesh.

    Shape, dtype, layout and memory are those of a shard; all shards have the same.
    """

    def __init__(self, shards: Sequence[Tensor], device: MeshDevice | None):
        self.shards, self._device = tuple(shards), device
        first = self.shards[0]
        self.shape, self.dtype, self.layout = first.shape, first.dtype, first.layout
        self._memory_config, self._storage = first.memory_config(), first.storage_type()

    @property
    def values(self):
        raise RuntimeError(f"TT_FATAL: {describe(self)} is distributed over {len(self.shards)} chips, take a shard")

    @property
    def unknown_padding(self) -> bool:
        return self.shards[0].unknown_padding

    def is_allocated(self) -> bool:
        return self.shards[0].is_allocated()

    def device(self) -> MeshDevice | None:
        return self._device if self.is_allocated() else None

    def deallocate(self, force: bool = False) -> None:
        for shard in self.shards:
            shard.deallocate(force)


def distributed(shards: Sequence[Tensor], device: MeshDevice | None) -> Tensor:
    """The tensor of these shards; of one shard, itself."""
    return MeshTensor(shards, device) if len(shards) > 1 else shards[0]


def shards_of(tensor: Tensor) -> Sequence[Tensor]:
    """One tensor a chip, also where it is only one."""
    return tensor.shards if isinstance(tensor, MeshTensor) else (tensor,)


def get_device_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors of the chips, row by row of the mesh."""
    return list(shards_of(tensor))


def lines(shape: MeshShape, axis: int) -> list[range]:
    """The places in a row-major mesh of the chips that an axis joins, line by line."""
    rows, columns = shape
    if axis == 0:
        return [range(column, rows * columns, columns) for column in range(columns)]
    return [range(row * columns, (row + 1) * columns) for row in range(rows)]


def per_chip(operation: Callable) -> Callable:
    """Let an operation of one chip work on meshes too: on each chip by itself, with the chip's shards of its operands.

    Other arguments, host tensors of one shard among them, go to every chip as they are; results that are no tensors
    are those of the first chip. Raises RuntimeError for operands of several devices or different counts of shards.
    """
    op = operation.__name__

    @functools.wraps(operation)
    def on_each_chip(*args, **kwargs):
        operands = list(_operands((args, kwargs)))
        if not any(isinstance(operand, (MeshTensor, SeveralChips)) for operand in operands):
            return operation(*args, **kwargs)
        device, count = _place(op, operands)
        first, results = {}, []  # by the values that operands hold: the first chip's operands and result
        for i in range(count):
            chip_args, chip_kwargs = _share((args, kwargs), i)
            mine = list(_operands((chip_args, chip_kwargs)))
            key = tuple(operand.address for operand in mine if isinstance(operand, Tensor))
            if key not in first:
                first[key] = mine, operation(*chip_args, **chip_kwargs)
                results.append(first[key][1])
            else:
                theirs, result = first[key]
                results.append(_counterpart(result, theirs, mine, device and device.chips[i]))
        return _joined(results, operands, device)

    return on_each_chip


def _operands(value) -> Iterator[Tensor | MeshDevice]:
    if isinstance(value, (Tensor, MeshDevice)):
        yield value
    elif type(value) in (list, tuple, dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _operands(item)


def _place(op, operands) -> tuple[MeshDevice | None, int]:
    """The device of all operands that are on one, and the count of chips."""
    devices = {operand if isinstance(operand, MeshDevice) else operand.device() for operand in operands} - {None}
    check(len(devices) <= 1, op, "operands live on different devices")
    counts = {len(operand.shards) for operand in operands if isinstance(operand, MeshTensor)}
    counts |= {len(device.chips) for device in devices}
    check(len(counts) == 1, op, f"operands have {sorted(counts)} shards or chips")
    return next(iter(devices), None), counts.pop()


def _share(value, chip: int):
    """A chip's share of an argument."""
    if isinstance(value, MeshTensor):
        return value.shards[chip]
    if isinstance(value, SeveralChips):
        return value.chips[chip]
    if type(value) in (list, tuple):
        return type(value)(_share(item, chip) for item in value)
    if isinstance(value, dict):
        return {key: _share(item, chip) for key, item in value.items()}
    return value


def _counterpart(result, theirs, mine, chip: MeshDevice | None):
    """What a chip gets of ``mine`` where another got ``result`` of ``theirs``, which have the same values."""
    if type(result) in (list, tuple):
        return type(result)(_counterpart(item, theirs, mine, chip) for item in result)
    if not isinstance(result, Tensor):
        return result
    tensors = [(a, b) for a, b in zip(theirs, mine) if isinstance(a, Tensor)]
    for operand, counterpart in tensors:
        if result is operand:
            counterpart.hold(result)  # the operation may have written to it
            return counterpart
    for operand, counterpart in tensors:
        if result.is_view_of(operand):
            return counterpart.view(result.shape)
    return result if result.device() is None else result.held_by(chip)


def _joined(results, operands, device):
    if isinstance(results[0], Tensor):
        for operand in operands:
            if isinstance(operand, MeshTensor) and all(map(operator.is_, operand.shards, results)):
                return operand
        return MeshTensor(results, results[0].device() and device)
    if type(results[0]) in (list, tuple):
        return type(results[0])(_joined(parts, operands, device) for parts in zip(*results))
    return results[0]
