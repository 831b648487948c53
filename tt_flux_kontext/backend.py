"""The one door to TT-NN.

    from tt_flux_kontext.backend import ttnn

gives the `ttnn` library on a machine with a Tenstorrent card (or TT-NN's simulator or mock of one), and an emulation
of it elsewhere. The choice is made once per process, at the first use of `ttnn` or by `choose`, and can be set with the
environment variable `TT_FLUX_KONTEXT_BACKEND` (`silicon` or `emulated`).
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BACKENDS = {"silicon": "ttnn", "emulated": "tt_flux_kontext.emulator"}
EMULATED_SYSTEMS = ("n150", "n300", "t3k", "galaxy", "p100", "p150", "p300", "p150x4")
DEVICES = (*BACKENDS, *(f"emulated:{system}" for system in EMULATED_SYSTEMS))
"""Names that a device can be opened by."""
VARIABLE = "TT_FLUX_KONTEXT_BACKEND"
NODES = Path("/dev/tenstorrent")  # the kernel driver makes one a card
STAND_INS = ("TT_METAL_SIMULATOR", "TT_METAL_MOCK_CLUSTER_DESC_PATH")  # TT-NN's own, by environment variable


class _Door(ModuleType):
    """Stands in for the chosen module, so that importing a model does not yet choose one."""

    chosen: str | None = None
    watcher: Callable | None = None

    def __getattr__(self, name: str):
        if name.startswith("__"):  # introspection of the door itself is no use of TT-NN
            raise AttributeError(name)
        value = getattr(importlib.import_module(BACKENDS[choose()]), name)
        return _watched(name, value, self.watcher) if self.watcher else value


class _WatchedModule(ModuleType):
    """A submodule of TT-NN (`ttnn.transformer`), seen through a watcher."""

    def __init__(self, name: str, module: ModuleType, watcher: Callable):
        super().__init__(name)
        self.__getattr__ = lambda attribute: _watched(f"{name}.{attribute}", getattr(module, attribute), watcher)


def _watched(name: str, value, watcher: Callable):
    if isinstance(value, ModuleType):
        return _WatchedModule(name, value, watcher)
    if isinstance(value, type) or not callable(value):
        return value
    return functools.partial(watcher, name, value)


ttnn = _Door("ttnn")


@contextmanager
def watch(watcher: Callable) -> Iterator[None]:
    """Within it, a call of any function `ttnn.name` through the door becomes `watcher("name", function, *args, **kw)`.

    The watcher calls the function and returns what it returns.
    """
    ttnn.watcher = watcher
    try:
        yield
    finally:
        ttnn.watcher = None


def choose(backend: str | None = None) -> str:
    """Chooses the backend for this process, by default the one in use, and returns its name.

    Raises `ValueError` for an unknown name, and `RuntimeError` when the process already uses the other one or the
    machine lacks what it needs.
    """
    if backend is None:
        backend = ttnn.chosen or os.environ.get(VARIABLE) or ("emulated" if silicon_lacks() else "silicon")
    if backend not in BACKENDS:
        raise ValueError(f"Unknown device '{backend}': it is one of {', '.join(BACKENDS)}.")
    if ttnn.chosen not in (None, backend):
        raise RuntimeError(
            f"This process already runs on the '{ttnn.chosen}' device and can't change to '{backend}'. "
            f"Start a new process, with {VARIABLE}={backend} or with '{backend}' as the first device that it opens."
        )
    if backend == "silicon" and (lacking := silicon_lacks()):
        raise RuntimeError(lacking)
    ttnn.chosen = backend
    return backend


def silicon_lacks() -> str | None:
    """What there must be for the 'silicon' device and isn't here, in a sentence; None where nothing is missing."""
    if importlib.util.find_spec("ttnn") is None:
        return (
            "The 'silicon' device needs the ttnn library, which this Python doesn't have: wheels exist for "
            "CPython 3.10 and 3.12 on Linux x86-64. Use the 'emulated' device without it."
        )
    if not any(NODES.glob("*")) and not any(map(os.environ.get, STAND_INS)):
        return (
            f"No Tenstorrent card was found: is its driver tt-kmd loaded (ls {NODES}), and what does tt-smi say? "
            "Use the 'emulated' device without one."
        )
    return None
