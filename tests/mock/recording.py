"""Calls of the emulator as data: what was asked with, and what came out, without values."""

from dataclasses import dataclass

import torch

from tt_flux_kontext import emulator
from tt_flux_kontext.backend import watch
from tt_flux_kontext.emulator.semaphores import GlobalSemaphore


@dataclass(frozen=True)
class TensorForm:
    """All of a tensor but its values; enums by name."""

    shape: tuple[int, ...]
    padded_shape: tuple[int, ...]
    dtype: str
    layout: str
    memory_layout: str
    buffer_type: str
    on_device: bool
    shards: int  # one a chip; the shape is theirs

    @classmethod
    def of(cls, tensor, library) -> "TensorForm":
        """Of the emulator's tensor or of TT-NN's; `library` is which of them."""
        memory, on_device = tensor.memory_config(), tensor.storage_type().name == "DEVICE"
        return cls(
            tuple(tensor.shape),
            tuple(tensor.padded_shape),
            tensor.dtype.name,
            tensor.layout.name,
            memory.memory_layout.name if on_device else "",  # a host tensor's says nothing
            memory.buffer_type.name if on_device else "",
            on_device,
            len(library.get_device_tensors(tensor)),
        )


@dataclass(frozen=True)
class TorchForm:
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class DeviceMark:
    """Stands for the device."""


@dataclass(frozen=True)
class SemaphoreMark:
    """Stands for a semaphore."""


@dataclass(frozen=True)
class Activation:
    """Stands for a UnaryWithParam."""

    name: str
    params: tuple


@dataclass(frozen=True)
class Call:
    """`ttnn.name(*args, **kwargs)` gave `result`; tensors and devices in all of them are forms and marks."""

    name: str
    args: tuple
    kwargs: dict
    result: object


class Recorder:
    """Within `with Recorder() as recorder`, notes each distinct call that takes or gives a tensor."""

    def __init__(self):
        self.calls: dict[str, Call] = {}

    def __enter__(self) -> "Recorder":
        self._watch = watch(self._note)
        self._watch.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._watch.__exit__(*error)

    def _note(self, name, function, *args, **kwargs):
        asked = forms(args), forms(kwargs)
        result = function(*args, **kwargs)
        if any(form in repr((asked, forms(result))) for form in ("TensorForm", "TorchForm")):
            key = f"{name} {asked}"
            self.calls.setdefault(key, Call(name, *asked, forms(result)))
        return result


def forms(value):
    """A value with forms and marks for what can't be written down."""
    if isinstance(value, emulator.Tensor):
        return TensorForm.of(value, emulator)
    if isinstance(value, torch.Tensor):
        return TorchForm(tuple(value.shape), value.dtype)
    if isinstance(value, emulator.MeshDevice):
        return DeviceMark()
    if isinstance(value, GlobalSemaphore):
        return SemaphoreMark()
    if isinstance(value, emulator.UnaryWithParam):
        return Activation(value.op_type.name, tuple(value.params))
    if type(value) in (list, tuple):
        return type(value)(forms(item) for item in value)
    if isinstance(value, dict):
        return {key: forms(item) for key, item in value.items()}
    return value
