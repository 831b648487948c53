"""Work on the device that repeats: recorded as a trace, which a single command replays."""

import os
from collections.abc import Callable

from tt_flux_kontext.backend import STAND_INS, ttnn
from tt_flux_kontext.mesh import Mesh

VARIABLE = "TT_FLUX_KONTEXT_TRACES"  # environment variable: "off" for none
SLOW_DISPATCH = "TT_METAL_SLOW_DISPATCH_MODE"  # environment variable of TT-NN: its host writes to the cores itself
FEW_CALLS = 3  # of which one has to run first, and one or two to be captured


def can_trace() -> bool:
    """Whether there are traces in this process: not with slow dispatch, nor on TT-NN's mock device or simulator."""
    return os.environ.get(VARIABLE) != "off" and not any(map(os.environ.get, (SLOW_DISPATCH, *STAND_INS)))


class Traced:
    """Calls of `work`, which are replays of a trace but for the first one and few calls.

    The first call compiles programs and makes what the mesh's collectives share. Each set of semaphores that `work`
    uses an odd number of times begins the next call with the other one; so there is a trace for each state of the
    mesh's turns that a call meets, which makes one or two.

    Args:
        work: takes nothing and gives nothing. It reads tensors on the device and writes to others, all of which are
            there before the first call and until `release`.
        calls: that are to come.

    From the second call to `release` nothing may be allocated on the device that lives on to the next call: it may lie
    where the trace keeps what it makes.
    """

    def __init__(self, work: Callable[[], object], mesh: Mesh, calls: int):
        self.work, self.mesh = work, mesh
        self.worth_it = calls > FEW_CALLS and can_trace()
        self._ran = False
        self._traces = {}  # by turns: the trace that begins with them, and the turns after it

    def __call__(self) -> None:
        if not (self.worth_it and self._ran):
            self.work()
            self._ran = True
            return
        turns = self.mesh.turns
        if turns not in self._traces:
            self._capture()
        trace, self.mesh.turns = self._traces[turns]
        ttnn.execute_trace(self.mesh.device, trace, blocking=False)

    def _capture(self) -> None:
        turns = self.mesh.turns
        trace = ttnn.begin_trace_capture(self.mesh.device)
        try:
            self.work()
        finally:
            ttnn.end_trace_capture(self.mesh.device, trace)
            self._traces[turns] = trace, self.mesh.turns

    def release(self) -> None:
        """Frees the traces."""
        for trace, _ in self._traces.values():
            ttnn.release_trace(self.mesh.device, trace)
        self._traces.clear()
