"""Modules of a checkpoint by the names that adapters have for them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tt_flux_kontext.checkpoint.black_forest_labs import Source, sources
from tt_flux_kontext.lora.changes import ALL


@dataclass(frozen=True)
class Target:
    """A module of a component, and the rows of the adapter's module that are its own."""

    component: str
    module: str
    source: Source = ALL


# What stands before a module's name, by component, the longer of two first.
_PREFIXES = {
    "text_encoder_2": ("text_encoders.t5xxl.transformer.", "text_encoder_2.", "lora_te2_", "lora_te3_"),
    "text_encoder": ("text_encoders.clip_l.transformer.", "text_encoder.", "lora_te1_", "lora_te_"),
    "transformer": (
        "base_model.model.",
        "model.diffusion_model.",
        "diffusion_model.",
        "transformer.",
        "lora_unet_",
        "lora_transformer_",
        "lycoris_transformer_",
        "lycoris_",
        "",
    ),
}
_INNER = ("base_model.model.", "transformer.", "diffusion_model.")  # PEFT's names in those of others

# XLabs' processors have modules of their own beside those that they change.
_XLABS = re.compile(r"((?:double|single)_blocks\.\d+)\.processor\.(\w+)")
_XLABS_MODULES = {
    "qkv_lora1": "img_attn.qkv",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "proj_lora2": "txt_attn.proj",
    "qkv": "xlabs_qkv",  # with `_lora` behind it, which ends the names of many programs
    "proj": "linear2",
}
# diffusers' old names of CLIP's attention.
_OLD_CLIP = re.compile(r"(self_attn)\.to_(q|k|v|out)$")


class Targets:
    """Of a checkpoint.

    Args:
        keys: of the tensors of each component.
    """

    def __init__(self, keys: Mapping[str, Iterable[str]]):
        self._found: dict[tuple[str, str], list[Target]] = defaultdict(list)
        for component in _PREFIXES:
            modules = list(dict.fromkeys(key.rpartition(".")[0] for key in keys[component]))
            for module in modules:
                self._add(module, Target(component, module))
                short = module.removeprefix("text_model.")
                if short != module:
                    self._add(short, Target(component, module))
                elif component == "text_encoder":
                    self._add(f"text_model.{module}", Target(component, module))
            if component == "transformer":
                self._add_theirs(modules)

    def of(self, name: str) -> list[Target]:
        """The modules that an adapter's module changes; none for a name that means nothing here."""
        xlabs = _XLABS.search(name)
        if xlabs and xlabs[2] in _XLABS_MODULES:
            name = f"{xlabs[1]}.{_XLABS_MODULES[xlabs[2]]}"
        name = _OLD_CLIP.sub(lambda found: f"{found[1]}.{found[2]}_proj", name)
        for component, prefixes in _PREFIXES.items():
            for prefix in prefixes:
                if not name.startswith(prefix):
                    continue
                rest = name.removeprefix(prefix)
                for inner in ("", *_INNER):
                    found = self._found.get((component, rest.removeprefix(inner)))
                    if found:
                        return found
        return []

    def _add(self, name: str, target: Target) -> None:
        """With points, and with underscores in their place."""
        for spelling in {name, name.replace(".", "_")}:
            self._found[target.component, spelling].append(target)

    def _add_theirs(self, modules: list[str]) -> None:
        """By Black Forest Labs' names."""
        counts = [len({m.split(".")[1] for m in modules if m.startswith(f"{kind}.")}) for kind in _BLOCKS]
        for module, source in sources(*counts).items():
            if module in modules:
                self._add(source.module, Target("transformer", module, source))
                if source.module.endswith("_norm"):
                    self._add(f"{source.module}.scale", Target("transformer", module, source))
        for i in range(counts[1]):
            for part, name in enumerate(("to_q", "to_k", "to_v")):
                module = f"single_transformer_blocks.{i}.attn.{name}"
                name = f"single_blocks.{i}.xlabs_qkv"
                self._add(name, Target("transformer", module, Source(name, (part,), 3)))


_BLOCKS = ("transformer_blocks", "single_transformer_blocks")
