"""The adapters of a pipeline: which are loaded, at work, or fused, and what they make of a tensor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

import torch

from tt_flux_kontext.checkpoint import Entry
from tt_flux_kontext.lora.changes import Change

COMPONENTS = ("transformer", "text_encoder", "text_encoder_2")
_numbers = count()  # tell adapters apart, also those that have one name in turn


@dataclass(frozen=True)
class Adapter:
    """Changes by component and tensor of the checkpoint."""

    name: str
    changes: Mapping[str, Mapping[str, Change]]
    number: int = field(default_factory=lambda: next(_numbers))


class Changes:
    """What is added to a component's tensors: changes of adapters, each times a factor."""

    def __init__(self, adapters: Iterable[tuple[Adapter, Mapping[str, Change], float]] = ()):
        self._adapters = [each for each in adapters if each[2]]

    def by(self, keys: Iterable[str]) -> str:
        """Tells what is added to these tensors from whatever else may be; "" for nothing."""
        keys = list(keys)
        touching = [each for each in self._adapters if not each[1].keys().isdisjoint(keys)]
        return " ".join(f"{adapter.number} x {factor!r}" for adapter, _, factor in touching)

    def merged(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with all that is added to it, in float32, or as it is where nothing is."""
        for _, changes, factor in self._adapters:
            if key in changes and not tensor.is_meta:
                tensor = changes[key].added_to(tensor, factor)
        return tensor


UNCHANGED = Changes()


class Adapters:
    """Of a checkpoint.

    Args:
        entries: its tensors by component.

    Attributes:
        loaded: by name, in their order.
        active: names of those at work.
        enabled: whether those are.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, Entry]]):
        self.entries = entries
        self.loaded: dict[str, Adapter] = {}
        self.active: list[str] = []
        self.enabled = True
        self._weights: dict[tuple[str, str], float] = {}  # by name and component
        self._fused: dict[str, list[tuple[Adapter, float]]] = {component: [] for component in COMPONENTS}

    def add(self, adapter: Adapter) -> None:
        """Loads one, which then is the only one at work."""
        self.loaded[adapter.name] = adapter
        self.choose({adapter.name: {}})

    def choose(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Says which are at work, with a weight by component, or 1."""
        self.active = list(weights)
        for name, by_component in weights.items():
            for component in COMPONENTS:
                self._weights[name, component] = by_component.get(component, 1.0)

    def delete(self, name: str) -> None:
        """Forgets one. As far as it is fused it stays."""
        del self.loaded[name]
        self.active = [each for each in self.active if each != name]

    def fuse(self, names: Iterable[str], components: Iterable[str], scale: float) -> None:
        """Makes adapters part of the weights, until `unfuse`."""
        for component in components:
            for name in names:
                adapter = self.loaded[name]
                if component in adapter.changes and not self._is_fused(adapter, component):
                    self._fused[component].append((adapter, self._weights[name, component] * scale))

    def unfuse(self, components: Iterable[str]) -> None:
        for component in components:
            self._fused[component].clear()

    @property
    def fused(self) -> set[str]:
        return {adapter.name for adapters in self._fused.values() for adapter, _ in adapters}

    @property
    def scaled(self) -> list[str]:
        """The names of those that a call's scale is of: at work, and not fused in all that they change."""
        return [
            name
            for name in (self.active if self.enabled else [])
            if not all(self._is_fused(self.loaded[name], component) for component in self.loaded[name].changes)
        ]

    def changes(self, component: str, scale: float) -> Changes:
        """What is added to a component's tensors now, `scale` times where it is not fused."""
        if component not in COMPONENTS:
            return UNCHANGED
        found = [(adapter, adapter.changes[component], factor) for adapter, factor in self._fused[component]]
        for name in self.active if self.enabled else []:
            adapter = self.loaded[name]
            if component in adapter.changes and not self._is_fused(adapter, component):
                found.append((adapter, adapter.changes[component], scale * self._weights[name, component]))
        return Changes(found)

    def _is_fused(self, adapter: Adapter, component: str) -> bool:
        return any(adapter is fused for fused, _ in self._fused[component])
