"""The pipeline's methods for adapters, with the names, arguments and meaning of diffusers' FluxLoraLoaderMixin.

What they change takes effect when a model next comes to the device: adapters are merged into its weights on the way,
in float32, before these get the device's formats. So they cost the edit nothing, and what they don't touch stays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from loguru import logger

from tt_flux_kontext.inputs import check_finite
from tt_flux_kontext.lora.adapters import COMPONENTS, Adapter, Adapters
from tt_flux_kontext.lora.files import read_adapter
from tt_flux_kontext.lora.layouts import Metadata, read_layout
from tt_flux_kontext.lora.targets import Targets
from tt_flux_kontext.turns import one_at_a_time

SHOWN = 5  # keys that a message names


class LoraLoaderMixin:
    """Of a pipeline with a `turn` and `_adapters`."""

    _adapters: Adapters

    @one_at_a_time
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
    ) -> None:
        """Loads an adapter, which then is the only one at work; `set_adapters` mixes several.

        LoRA in the layouts of diffusers and PEFT, kohya, ComfyUI, ai-toolkit, fal, XLabs and OneTrainer, LoHa, LoKr and
        plain differences (`diff`), for the transformer and both text encoders. A line says how many of its modules
        are in this checkpoint, and a warning names the others.

        Args:
            pretrained_model_name_or_path_or_dict: a .safetensors file, a folder, a hub id, or tensors by name.
            adapter_name: by default `default_0` and so on.
            weight_name: of the file in the folder or repository.

        Raises:
            ValueError: it can't be read, is of a kind that can't be merged (DoRA, a control LoRA, OFT), of another
                model, or its name is taken. What was loaded before stays as it was.
        """
        adapters = self._adapters
        if adapter_name is None:
            adapter_name = next(name for i in range(10**6) if (name := f"default_{i}") not in adapters.loaded)
        if adapter_name in adapters.loaded:
            raise ValueError(
                f"Adapter name {adapter_name} already in use in the model - please select a new adapter name."
            )
        tensors, header, what = read_adapter(pretrained_model_name_or_path_or_dict, weight_name)
        layout = read_layout(tensors, Metadata.of(header, what), Targets(adapters.entries), adapters.entries, what)
        total = len(layout.modules) + len(layout.unmatched)
        logger.info(f"LoRA {adapter_name}: {len(layout.modules)} of {total} modules of {what}")
        if layout.unmatched:
            more = f" and {len(layout.unmatched) - SHOWN} more" if len(layout.unmatched) > SHOWN else ""
            logger.warning(
                f"{what}: {len(layout.unmatched)} of {total} modules are not in this checkpoint and have no effect: "
                f"{', '.join(layout.unmatched[:SHOWN])}{more}."
            )
        adapters.add(Adapter(adapter_name, layout.changes))

    @one_at_a_time
    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Mapping[str, float] | Sequence[float | Mapping[str, float] | None] | None = None,
    ) -> None:
        """Says which adapters are at work, and with what weights.

        Args:
            adapter_weights: one for all, or one each: a number, a dict with a number by component (`transformer`,
                `text_encoder`, `text_encoder_2`; others keep 1), or None for 1.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        several = isinstance(adapter_weights, Sequence)
        weights = list(adapter_weights) if several else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(
                f"Length of adapter names {len(names)} is not equal to the length of the weights {len(weights)}"
            )
        self._check_loaded(names)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"`adapter_names` has {', '.join(twice)} more than once: each has one weight.")
        self._adapters.choose({name: self._weights(name, weight) for name, weight in zip(names, weights)})

    def get_active_adapters(self) -> list[str]:
        """The names of those at work, or that `enable_lora` would bring back to it."""
        return list(self._adapters.active)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """By component, the names of the adapters that change it."""
        listed = {}
        for component in COMPONENTS:
            names = [name for name, adapter in self._adapters.loaded.items() if component in adapter.changes]
            if names:
                listed[component] = names
        return listed

    @one_at_a_time
    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forgets adapters, and warns where none of the others is at work then.

        Raises `ValueError` for names that there are not.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(dict.fromkeys(adapter_names))
        self._check_loaded(names)
        were_active = bool(self._adapters.active)
        for name in names:
            self._adapters.delete(name)
        if were_active and self._adapters.loaded and not self._adapters.active:
            others = ", ".join(self._adapters.loaded)
            logger.warning(f"No adapter is at work any more; `set_adapters` brings others back to it: {others}.")

    @one_at_a_time
    def disable_lora(self) -> None:
        """Leaves out all adapters but those that are fused, until `enable_lora`."""
        self._adapters.enabled = False

    @one_at_a_time
    def enable_lora(self) -> None:
        self._adapters.enabled = True

    @one_at_a_time
    def fuse_lora(
        self,
        components: Sequence[str] = ("transformer",),
        lora_scale: float = 1.0,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Makes adapters part of a component's weights, `lora_scale` times, whatever becomes of them afterwards.

        Args:
            adapter_names: by default all that are at work.
        """
        components = self._components(components)
        names = self._adapters.active if adapter_names is None else list(adapter_names)
        self._check_loaded(names)
        self._adapters.fuse(names, components, _number(lora_scale, "lora_scale"))

    @one_at_a_time
    def unfuse_lora(self, components: Sequence[str] = ("transformer",)) -> None:
        """Takes fused adapters out of a component's weights."""
        self._adapters.unfuse(self._components(components))

    @property
    def fused_loras(self) -> set[str]:
        return self._adapters.fused

    @property
    def num_fused_loras(self) -> int:
        return len(self.fused_loras)

    @one_at_a_time
    def unload_lora_weights(self) -> None:
        """Forgets all adapters. What is fused stays, as in diffusers."""
        for name in list(self._adapters.loaded):
            self._adapters.delete(name)
        self._adapters.enabled = True

    def _check_loaded(self, names: Sequence[str]) -> None:
        unknown = set(names) - self._adapters.loaded.keys()
        if unknown:
            present = sorted(self._adapters.loaded) or "none"
            raise ValueError(f"Adapter name(s) {sorted(unknown)} not in the list of present adapters: {present}.")

    def _weights(self, name: str, weight) -> dict[str, float]:
        """By component."""
        if weight is None:
            return {}
        if not isinstance(weight, Mapping):
            return dict.fromkeys(COMPONENTS, _number(weight, "adapter_weights"))
        changed = self._adapters.loaded[name].changes
        for component in weight:
            if component not in COMPONENTS:
                raise ValueError(f"`adapter_weights` of {name} has {component!r}; components are {COMPONENTS}.")
            if component not in changed:
                logger.warning(f"The weight of adapter {name} for {component} has no effect: it changes none of it.")
        return {component: _number(value, f"adapter_weights of {component}") for component, value in weight.items()}

    def _components(self, components: Sequence[str]) -> list[str]:
        components = [components] if isinstance(components, str) else list(components)
        if not components:
            raise ValueError("`components` cannot be an empty list.")
        for component in components:
            if component not in COMPONENTS:
                raise ValueError(f"{component} is not one of the components that adapters change: {COMPONENTS}.")
        return components


def _number(value, name: str) -> float:
    check_finite(**{name: value})
    return float(value)
