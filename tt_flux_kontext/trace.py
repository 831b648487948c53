"""Work on the device that repeats: recorded as a trace, which a single command replays."""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from weakref import WeakSet

from tt_flux_kontext.backend import STAND_INS, ttnn
from tt_flux_kontext.device import dram_bytes, is_open
from tt_flux_kontext.mesh import Mesh
from tt_flux_kontext.models.from_host import FromHost

VARIABLE = "TT_FLUX_KONTEXT_TRACES"  # environment variable: "off" for none
SLOW_DISPATCH = "TT_METAL_SLOW_DISPATCH_MODE"  # environment variable of TT-NN: its host writes to the cores itself
ROOM = 300_000_000  # bytes of DRAM for traces of T5 and the VAE: 2,600 operations, which on a mesh are there twice
FEW_CALLS = 3  # of which one has to run first, and one or two to be captured


def can_trace() -> bool:
    """Whether there are traces in this process: not with slow dispatch, nor on TT-NN's mock device or simulator."""
    return os.environ.get(VARIABLE) != "off" and not any(map(os.environ.get, (SLOW_DISPATCH, *STAND_INS)))


class _Trace(NamedTuple):
    """A trace, what of the mesh has the other turn after it, and what the work returned when it was captured."""

    id: object
    turned: frozenset
    result: object


class Traced:
    """Calls of `work`, which are replays of a trace but for the first one and few calls.

    The first call compiles programs and makes what the mesh's collectives share. Each set of semaphores that `work`
    uses an odd number of times begins the next call with the other one; so there is a trace for each state of the turns
    of what it uses that a call meets, which makes one or two.

    Args:
        work: takes nothing. It reads tensors on the device and writes to others, all of which are there before the
            first call and until `release`. What it returns holds what the last replay of this trace made.
        calls: that are to come.
        ran: whether it has been called before.

    From the first replay to `release` nothing may be allocated on the device that lives on to the next one: it may lie
    where the trace keeps what it makes.
    """

    def __init__(self, work: Callable[[], object], mesh: Mesh, calls: float, ran: bool = False):
        self.work, self.mesh = work, mesh
        self.worth_it = calls > FEW_CALLS and can_trace()
        self._ran = ran
        self._uses: set[tuple] = set()  # of what the mesh gives out in turns
        self._traces: dict[frozenset, _Trace] = {}  # by turns before it

    def __call__(self):
        if not (self.worth_it and self._ran):
            self._ran = True
            return self.work()
        if self.mesh.turns & self._uses not in self._traces:
            self._capture()
        trace = self._traces[self.mesh.turns & self._uses]
        self.mesh.turns ^= trace.turned
        ttnn.execute_trace(self.mesh.device, trace.id, blocking=False)
        return trace.result

    def _capture(self) -> None:
        turns, result = self.mesh.turns, None
        self.mesh.used = set()
        trace = ttnn.begin_trace_capture(self.mesh.device)
        try:
            result = self.work()
        finally:
            ttnn.end_trace_capture(self.mesh.device, trace)
            self._uses = self.mesh.used
            self._traces[turns & self._uses] = _Trace(trace, turns ^ self.mesh.turns, result)
            self.mesh.turns = turns

    def release(self) -> None:
        """Frees the traces."""
        for trace in self._traces.values():
            ttnn.release_trace(self.mesh.device, trace.id)
        self._traces.clear()


class Replays:
    """Calls of models whose weights stay on the device, as traces that are kept from one edit to the next.

    An edit's calls are captured when in the one before no weights moved, and inputs had the same forms. What lasts on
    the device has to be there before the first of these traces, or it may lie where they write: weights, places of
    inputs, what a model keeps for a form, what others put there. So all traces go when any of that changes, when free
    memory is not what the last replay left, and when another pipeline on the device begins, which may leave as much
    free as it found, and its tensors elsewhere.
    """

    _all: "WeakSet[Replays]" = WeakSet()

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._all.add(self)
        self._calls: dict[str, _Call] = {}  # by model, its last one
        self._steady = False  # whether, since edits began, nothing has changed that makes traces go
        self._left: int | None = None  # free by the last replay, if all traces are still there

    def begin(self, needed: int) -> None:
        """Edits begin, which need so many bytes of a chip's DRAM beside weights. Now or never inputs get places."""
        for other in self._all:
            if other is not self and other.mesh.device is self.mesh.device:
                other._change()
        self._look()
        traced = [call.traced is not None for call in self._calls.values()]
        if not (self._steady and can_trace() and (any(traced) or self._free() >= needed + ROOM)):
            self._release()
        elif not all(traced):
            self._release()
            for call in self._calls.values():
                call.place(self.mesh)
        self._steady = True

    def __call__(self, name: str, model: FromHost, *arguments):
        """What a model makes of arguments, on the device. The next call of the model may write over it."""
        x, form = model.host_input(*arguments)
        call = self._calls.get(name)
        if call is None or call.form is not form:
            self.forget(name)
            call = self._calls[name] = _Call(model, x, form)
        self._look()
        try:
            made = call(x)
        except BaseException:
            self.forget(name)  # it may not have run to its end, without which nothing can be captured
            raise
        if call.traced:
            self._left = self._free()
        return made

    def forget(self, name: str) -> None:
        """A model comes to the device, leaves it, fails, or gets inputs of another form."""
        self._change()
        self._calls.pop(name, None)

    def _free(self) -> int:
        """Bytes of a chip's DRAM."""
        return dram_bytes(self.mesh.device)[0]

    def _look(self) -> None:
        """Whether something has come to the device, or gone from it, since the last replay."""
        if self._left not in (None, self._free()):
            self._change()

    def _change(self) -> None:
        """Of what traces rest on."""
        self._release()
        self._steady = False

    def _release(self) -> None:
        self._left = None
        for call in self._calls.values():
            call.release()

    def __del__(self):
        if is_open(self.mesh.device):
            self._release()


class _Call:
    """Of a model, with an input of one form; once it has a place on the device, as a trace."""

    def __init__(self, model: FromHost, x: "ttnn.Tensor", form):
        self.model, self.x, self.form = model, x, form
        self.placed = self.traced = None

    def place(self, mesh: Mesh) -> None:
        self.placed = ttnn.to_device(self.x, mesh.device)
        self.traced = Traced(partial(self.model.on_device, self.placed, self.form), mesh, math.inf, ran=True)

    def __call__(self, x: "ttnn.Tensor"):
        if not self.traced:
            return self.model.on_device(ttnn.to_device(x, self.model.device), self.form)
        ttnn.copy_host_to_device_tensor(x, self.placed)
        return self.traced()

    def release(self) -> None:
        if self.traced:
            self.traced.release()
        self.placed = self.traced = None
