"""Traces: operations that are recorded once, and then replayed without the host's doing.

On a card a trace is commands with the addresses of buffers in them, and whatever else has changed goes unnoticed. Here
it is operations and their tensors, done again at each replay, and what would go wrong unnoticed is refused.
"""

import functools
import gc
import inspect
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass
from enum import Enum

import torch

from .checks import check, describe
from .device import MeshDevice
from .mesh import shards_of
from .tensor import Buffer, Tensor
from .types import StorageType


@dataclass(frozen=True)
class _Given:
    """Stands for a tensor that was there before the capture. A trace keeps nothing alive."""

    tensor: weakref.ref
    form: str


@dataclass(frozen=True)
class _Made:
    """Stands for a tensor that the trace makes."""

    number: int


@dataclass
class _Call:
    """An operation with its arguments, in which `_Given` and `_Made` stand for tensors.

    ``made``: numbers of its results, None for one that is an operand. ``done``: numbers that no later call needs.
    """

    operation: Callable
    arguments: tuple
    made: list[int | None]
    done: set[int] = field(default_factory=set)


class MeshTraceId:
    """A trace; in TT-NN it is a number that stands for one."""

    def __init__(self, device: MeshDevice):
        self.device = device
        self.later = weakref.WeakSet()  # buffers that were allocated after the capture
        self._inside = weakref.WeakSet()
        self._calls: list[_Call] = []
        self._numbers = weakref.WeakKeyDictionary()  # by tensor that the trace makes
        self._new_number = itertools.count()
        # A card only takes notes: what is done here in the meantime is undone at the end.
        self._values: dict[Buffer, torch.Tensor] = {}
        self._turns = dict(device.last_used)

    def allocated(self, buffer: Buffer) -> None:
        """During the capture."""
        self._inside.add(buffer)

    def before_write(self, buffer: Buffer) -> None:
        self._values.setdefault(buffer, buffer.values)

    def note(self, operation: Callable, arguments: tuple, results: list[Tensor]) -> None:
        op, operands = operation.__name__, list(_tensors(arguments))
        on_device = all(operand.storage_type() is StorageType.DEVICE for operand in operands)
        check(on_device, op, "writes are not supported during trace capture, and an operand is on the host")
        standing_for = _mapped(arguments, self._stand_in)
        made = [None if any(each is operand for operand in operands) else next(self._new_number) for each in results]
        self._numbers.update((each, number) for each, number in zip(results, made) if number is not None)
        self._calls.append(_Call(operation, standing_for, made))

    def _stand_in(self, tensor: Tensor) -> _Given | _Made:
        number = self._numbers.get(tensor)
        return _Given(weakref.ref(tensor), describe(tensor)) if number is None else _Made(number)

    def end(self) -> None:
        """Undo what the capture did. Tensors that it made and that live on hold nothing before the first replay."""
        for buffer, values in self._values.items():
            if buffer.values is not None:
                buffer.values = values
        self._values.clear()
        _overwrite(self._inside)
        self.device.last_used = self._turns
        self._lasting = {number: weakref.ref(tensor) for tensor, number in self._numbers.items()}
        seen = set()
        for call in reversed(self._calls):
            mentioned = {each.number for each in _items(call.arguments) if isinstance(each, _Made)}
            call.done = mentioned.union(call.made) - seen - {None}
            seen |= call.done

    def replay(self) -> None:
        self._check_operands()
        self._check_memory()
        made: dict[int, Tensor] = {}
        for call in self._calls:
            self._do(call, made)

    def _check_operands(self) -> None:
        for call in self._calls:
            for given in (each for each in _items(call.arguments) if isinstance(each, _Given)):
                tensor = given.tensor()
                there = tensor is not None and tensor.is_allocated()
                gone = f"{given.form} is no longer there: write new values into the tensor that was captured"
                check(there, "execute_trace", f"{call.operation.__name__}: an operand {gone}")

    def _check_memory(self) -> None:
        """What later traces made may be overwritten: they make it again. So may nothing else."""
        if self._alive():
            gc.collect()
        shapes = ", ".join(sorted({str(list(buffer.values.shape)) for buffer in self._alive()}))
        found = f"{shapes}: the replay may overwrite what was allocated after the capture and lives on"
        check(not shapes, "execute_trace", found)
        _overwrite(self.later)

    def _alive(self) -> list[Buffer]:
        others = set().union(*(trace._inside for trace in self.device.chips[0].traces))
        return [buffer for buffer in self.later if buffer.values is not None and buffer not in others]

    def _do(self, call: _Call, made: dict[int, Tensor]) -> None:
        def found(stand_in: _Given | _Made) -> Tensor:
            return made[stand_in.number] if isinstance(stand_in, _Made) else stand_in.tensor()

        args, kwargs = _mapped(call.arguments, found)
        results = list(_tensors(call.operation(*args, **kwargs)))
        for number, result in zip(call.made, results, strict=True):
            if number is not None:
                made[number] = self._in_place(number, result)
        for number in call.done:
            del made[number]

    def _in_place(self, number: int, result: Tensor) -> Tensor:
        """A result where the capture put it, if that tensor is still there."""
        lasting = self._lasting[number]() if number in self._lasting else None
        if lasting is None or not lasting.is_allocated():
            return result
        for there, new in zip(shards_of(lasting), shards_of(result)):
            there.hold(new)
        return lasting


def _overwrite(buffers: Iterable[Buffer]) -> None:
    """Numbers that nobody should read."""
    for buffer in buffers:
        if buffer.values is not None and buffer.values.is_floating_point():
            buffer.values = torch.full_like(buffer.values, math.nan)


def begin_trace_capture(mesh_device: MeshDevice, *, cq_id: int | None = None) -> MeshTraceId:
    """Record what follows, until ``end_trace_capture``, in place of doing it.

    Operations are refused that did not run in the same form before, numbers included: TT-NN can't load a program then,
    and would use the captured number for ever. So are reads, writes and waiting. Raises RuntimeError during a capture.
    """
    check(mesh_device.capture is None, "begin_trace_capture", "a capture is going on")
    trace = MeshTraceId(mesh_device)
    for chip in mesh_device.chips:
        chip.capture = trace
    return trace


def end_trace_capture(mesh_device: MeshDevice, trace_id: MeshTraceId, *, cq_id: int | None = None) -> None:
    """Raises RuntimeError when that trace is not being captured on the device."""
    captured = mesh_device.capture is trace_id and trace_id.device is mesh_device
    check(captured, "end_trace_capture", "the trace is not being captured on this device")
    for chip in mesh_device.chips:
        chip.capture = None
        chip.traces.add(trace_id)
    trace_id.end()


def execute_trace(
    mesh_device: MeshDevice, trace_id: MeshTraceId, *, cq_id: int | None = None, blocking: bool = True
) -> None:
    """Do again what was captured, with the same tensors.

    Raises RuntimeError for a trace of another device or one that was released, during a capture, and for what goes
    wrong unnoticed on a card: an operand that is no longer there, since its address is what was captured, and a buffer
    that was allocated after the capture and lives on, since the trace may write there.
    """
    check(mesh_device.capture is None, "execute_trace", "not supported during trace capture")
    _check_known("execute_trace", mesh_device, trace_id)
    trace_id.replay()


def release_trace(mesh_device: MeshDevice, trace_id: MeshTraceId) -> None:
    """Forget a trace. Raises RuntimeError for one of another device, or that was released."""
    _check_known("release_trace", mesh_device, trace_id)
    for chip in mesh_device.chips:
        chip.traces.remove(trace_id)


def _check_known(op: str, device: MeshDevice, trace: MeshTraceId) -> None:
    known = trace.device is device and all(trace in chip.traces for chip in device.chips)
    check(known, op, "the device has no such trace")


def record_operations(*namespaces: dict) -> None:
    """Let captures note the calls of the functions in a module's namespace that give tensors on a device."""
    for names in namespaces:
        names.update({name: _recorded(value) for name, value in names.items() if inspect.isfunction(value)})


def _recorded(operation: Callable) -> Callable:
    @functools.wraps(operation)
    def call(*args, **kwargs):
        result = operation(*args, **kwargs)
        tensors = [each for each in _tensors(result) if each.device() is not None]
        if tensors:
            device, form = tensors[0].device(), _program(operation, args, kwargs, result)
            if device.capture is None:
                device.programs.add(form)
            else:
                ran = form in device.programs
                check(ran, operation.__name__, f"did not run in this form before the trace capture: {form}")
                device.capture.note(operation, (args, kwargs), tensors)
        return result

    return call


def _program(operation: Callable, args: tuple, kwargs: dict, result) -> str:
    """What tells programs apart: to that of a convolution weights are as it prepared them."""
    if operation.__name__ == "conv2d" and kwargs.get("return_weights_and_bias"):
        kwargs = kwargs | dict(zip(("weight_tensor", "bias_tensor"), result[-1], strict=True))
    return f"{operation.__name__}{_form((args, kwargs))}"


def _form(value) -> str:
    """All of an argument but tensors' values, and which of several semaphores it is."""
    if isinstance(value, Tensor):
        return f"{describe(value)} {value.layout.name} {value.memory_config().buffer_type.name}"
    if isinstance(value, dict):
        return f"({', '.join(f'{key}={_form(item)}' for key, item in value.items())})"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_form, value))})"
    plain = value is None or is_dataclass(value) or isinstance(value, (bool, int, float, str, Enum))
    return repr(value) if plain else type(value).__name__


def _items(value) -> Iterator:
    if type(value) in (list, tuple, dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _items(item)
    else:
        yield value


def _tensors(value) -> Iterator[Tensor]:
    return (item for item in _items(value) if isinstance(item, Tensor))


def _mapped(value, function: Callable):
    """With ``function`` of each tensor, and of what stands for one, in its place."""
    if isinstance(value, (Tensor, _Given, _Made)):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, function) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, function) for key, item in value.items()}
    return value
