"""This machine's memory, and the weights that stay there while the device has others'."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.weight_cache import Changed, Keep, Make, uncached

SHARE = 0.5  # of the machine's memory that kept weights leave to all else

_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of both versions of control groups: where a container finds its own, its limit and what it uses."""


def host_memory() -> tuple[int, int]:
    """(available, total) bytes of this machine's memory, or of the container's where that is less.

    What the page cache has counts as available. Where the system doesn't tell, nothing is.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    available, total = 0, os.sysconf("SC_PHYS_PAGES") * page
    with suppress(OSError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    for folder, limit, usage in _CGROUPS:
        with suppress(OSError, ValueError, KeyError):  # no such group, or "max", which is no limit
            limited = int((folder / limit).read_text())
            fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(fields["active_file"]) + int(fields["inactive_file"])
            available = min(available, limited - int((folder / usage).read_text()) + cached)
            total = min(total, limited)
    return available, total


_Parameters = dict[str, tuple[str | None, "ttnn.Tensor"]]  # by name: what changed it, see `Changed`, and the tensor


class HostWeights:
    """Models' parameters in the form that the device takes, in this machine's memory: a model that comes back to the
    device comes from there.

    Those of an edit's first models are kept, as long as SHARE of the memory is left; the others are loaded each time
    that they are needed, which costs no more than if all made room for each other in turn. What TT-NN loads from files
    is mapped, so that it takes memory of the page cache, which the system gives to whoever needs it.
    """

    def __init__(self, device):
        self.device = device
        self._kept: dict[str, _Parameters] = {}

    def build(self, model: str, size: int, build: Callable[[Keep], object], load: Callable):
        """What `build(keep)` gives, with the parameters that are here, or else those of `load`.

        Of a model that is here those that adapters have changed meanwhile are made anew.

        Args:
            size: bytes that they take on the device.
            load: called as `load(build)`; calls that with a `Keep` of its own, and returns what it gives.
        """
        if model in self._kept:
            return build(partial(self._keep, self._kept[model], uncached))
        if not self._room(size):
            return load(lambda keep: build(lambda *parameter: self._on_device(keep(*parameter))))

        def build_and_keep(keep: Keep):
            parameters: _Parameters = {}
            built = build(partial(self._keep, parameters, keep))
            self._kept[model] = parameters
            return built

        return load(build_and_keep)

    def _keep(
        self, parameters: "_Parameters", keep: Keep, name: str, make: Make, changed: Changed | None
    ) -> "ttnn.Tensor":
        """Gives a parameter on the device, and leaves it here."""
        by = changed and changed.by
        known, tensor = parameters.get(name, (None, None))
        if tensor is None or known != by:
            parameters.pop(name, None)
            made = keep(name, make, changed)
            parameters[name] = by, ttnn.from_device(made)
            return self._on_device(made)
        return ttnn.to_device(tensor, self.device)

    def _on_device(self, tensor: "ttnn.Tensor") -> "ttnn.Tensor":
        return tensor if ttnn.is_tensor_storage_on_device(tensor) else ttnn.to_device(tensor, self.device)

    def _room(self, size: int) -> bool:
        """Whether so many bytes more may be kept. What is kept goes where there may be no room even to load them."""
        available, total = host_memory()
        while self._kept and available < 2 * size:  # the emulator has block floats in 16 bits
            self._kept.popitem()
            available, _ = host_memory()
        return available - size >= SHARE * total
