"""The one door to TT-NN.

    from tt_flux_kontext.backend import ttnn

gives the `ttnn` library on a machine with a Tenstorrent card, and an emulation of it elsewhere. The choice is made once
per process, at the first use of `ttnn` or by `choose`, and can be set with the environment variable
`TT_FLUX_KONTEXT_BACKEND` (`silicon` or `emulated`).
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
VARIABLE = "TT_FLUX_KONTEXT_BACKEND"


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

    Raises `ValueError` for an unknown name and `RuntimeError` when the process already uses the other one.
    """
    if backend is None:
        backend = ttnn.chosen or os.environ.get(VARIABLE) or ("silicon" if _card_present() else "emulated")
    if backend not in BACKENDS:
        raise ValueError(f"Unknown device '{backend}': it is one of {', '.join(BACKENDS)}.")
    if ttnn.chosen not in (None, backend):
        raise RuntimeError(
            f"This process already runs on the '{ttnn.chosen}' device and can't change to '{backend}'. "
            f"Start a new process, with {VARIABLE}={backend} or with '{backend}' as the first device that it opens."
        )
    if backend == "silicon" and importlib.util.find_spec("ttnn") is None:
        raise RuntimeError(
            "The 'silicon' device needs the ttnn library, which this Python doesn't have: wheels exist for "
            "CPython 3.10 and 3.12 on Linux x86-64. Use the 'emulated' device without it."
        )
    ttnn.chosen = backend
    return backend


def _card_present() -> bool:
    """The kernel driver (tt-kmd) makes a node per card."""
    return any(Path("/dev/tenstorrent").glob("*")) and importlib.util.find_spec("ttnn") is not None
