"""From an adapter's tensors to changes of the checkpoint's, whatever program wrote them.

Of each module an adapter has some fields, such as `lora_A.weight` and `lora_B.weight`. What they are called, how the
modules are, and where the scale stands differs: diffusers and PEFT, kohya, ComfyUI, ai-toolkit, fal, XLabs, OneTrainer,
LyCORIS. diffusers' own converters (`FluxLoraLoaderMixin.lora_state_dict`) know some of them, at the size of FLUX.1.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

from tt_flux_kontext.checkpoint import Entry
from tt_flux_kontext.inputs import check_finite
from tt_flux_kontext.lora.changes import Change, Hadamard, Kronecker, LowRank, Whole
from tt_flux_kontext.lora.targets import Targets

# By field, how its key ends.
_FIELDS = {
    "down": r"\.lora_A(?:\.\w+)?\.weight|[._]lora(?:_linear_layer)?[._]down\.weight|\.down\.weight",
    "up": r"\.lora_B(?:\.\w+)?\.weight|[._]lora(?:_linear_layer)?[._]up\.weight|\.up\.weight",
    "down_bias": r"\.lora_A(?:\.\w+)?\.bias",
    "up_bias": r"\.lora_B(?:\.\w+)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
} | {
    name: rf"\.{name}"
    for name in (
        *(f"hada_w{i}_{side}" for i in (1, 2) for side in "ab"),
        *(f"lokr_w{i}{side}" for i in (1, 2) for side in ("", "_a", "_b")),
    )
}
_KEY = re.compile(rf"(?P<module>.+?)(?:{'|'.join(f'(?P<{field}>{ending})' for field, ending in _FIELDS.items())})$")

# Kinds of which a part alone would be another change than was trained.
_REFUSED = {
    "DoRA, whose magnitudes are no change of low rank": r"dora_scale|lora_magnitude_vector|magnitude_vector",
    "OFT or BOFT, which turns weights in place of adding to them": r"\.oft_|\.boft_|oft_blocks|oft_diag",
    "IA3, which scales features": r"\.ia3_|\.on_input$",
    "a GLoRA": r"\.(a1|a2|b1|b2|bm)\.weight$",
    "of convolutions": r"\.lora_mid\.|\.hada_t\d|\.lokr_t\d",
    "a control LoRA (Canny or Depth), which takes a control picture": r"(query|key)_norm\.scale$|\.reshape_weight$",
}


@dataclass(frozen=True)
class Metadata:
    """How a file without alphas says its scale: PEFT's settings, by component.

    Attributes:
        settings: by "component." and name, such as `transformer.lora_alpha`.
    """

    settings: Mapping[str, object]

    @classmethod
    def of(cls, header: Mapping[str, str], what: str) -> "Metadata | None":
        """From a file's header, as diffusers writes it. Raises `ValueError` where it can't be read."""
        text = header.get(LORA_ADAPTER_METADATA_KEY)
        if text is None:
            return None
        try:
            settings = json.loads(text)
            if not isinstance(settings, dict):
                raise ValueError("it is no object with fields")
            for name, value in settings.items():
                patterns = value or {} if name.endswith(".alpha_pattern") else {}
                alphas = {name: value} if name.endswith(".lora_alpha") else patterns
                check_finite(**alphas)
                for pattern in patterns:
                    re.compile(pattern)
        except (ValueError, TypeError, AttributeError, re.error) as error:
            raise ValueError(f"{what}: {LORA_ADAPTER_METADATA_KEY} in its header can't be read ({error}).") from error
        return cls(settings)

    def scale(self, component: str, module: str, rank: int) -> float:
        """PEFT's alpha over rank, or over its root."""
        alpha = self._of(component, "lora_alpha", rank)
        patterns = self._of(component, "alpha_pattern", {}) or {}
        # The first one that names the module, or the end of its name, as in PEFT.
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self._of(component, "use_rslora", False) else rank)

    @property
    def dora(self) -> bool:
        return any(value for name, value in self.settings.items() if name.rpartition(".")[2] == "use_dora")

    def _of(self, component: str, name: str, default):
        return self.settings.get(f"{component}.{name}", default)


@dataclass(frozen=True)
class Layout:
    """What was found.

    Attributes:
        changes: by component and tensor of the checkpoint.
        modules: of the adapter, that reach the checkpoint.
        unmatched: those that don't, and keys that mean nothing here.
    """

    changes: dict[str, dict[str, Change]]
    modules: list[str]
    unmatched: list[str]


def read_layout(
    tensors: Mapping[str, torch.Tensor],
    metadata: Metadata | None,
    targets: Targets,
    entries: Mapping[str, Mapping[str, Entry]],
    what: str,
) -> Layout:
    """The changes that an adapter's tensors are.

    A module's scale is alpha / r, where it has an alpha, or what `metadata` says, and else 1.

    Args:
        entries: tensors of the checkpoint by component.
        what: the adapter, in messages.

    Raises `ValueError` for kinds that can't be merged, for modules that are incomplete, of another shape than the
    checkpoint's or named twice, and for an adapter of which nothing reaches the checkpoint.
    """
    _refuse(tensors, metadata, what)
    modules, unmatched = defaultdict(dict), []
    for key, tensor in tensors.items():
        found = _KEY.match(key)
        if found is None:
            unmatched.append(key)
            continue
        field = next(field for field in _FIELDS if found[field])
        if field in modules[found["module"]]:
            raise ValueError(f"{what} has {field} of {found['module']} twice, the second one as {key}.")
        modules[found["module"]][field] = tensor
    if metadata and any("alpha" in fields for fields in modules.values()):
        raise ValueError(f"{what} has its scale twice: in tensors (alpha), and in {LORA_ADAPTER_METADATA_KEY}.")
    reached, changes, owners = [], defaultdict(dict), {}
    for module, fields in modules.items():
        found = targets.of(module)
        if not found:
            unmatched.append(module)
            continue
        reached.append(module)
        for target in found:
            for parameter, added, scale in _added(fields, module, metadata, target, what):
                key = f"{target.module}.{parameter}"
                if (target.component, key) in owners:
                    other = owners[target.component, key]
                    raise ValueError(f"{what} changes {key} of the {target.component} twice: by {other} and {module}.")
                owners[target.component, key] = module
                change = Change(added, scale, target.source)
                _check(change, entries[target.component].get(key), key, module, what)
                changes[target.component][key] = change
    if not reached:
        endings = sorted({".".join(key.split(".")[-2:]) for key in tensors})
        raise ValueError(
            f"{what} changes nothing of this checkpoint: none of its {len(tensors)} tensors, such as "
            f"{next(iter(tensors), 'none at all')}, is of a module that is here. They end in {', '.join(endings[:8])}."
        )
    return Layout(dict(changes), reached, unmatched)


def _refuse(tensors: Mapping[str, torch.Tensor], metadata: Metadata | None, what: str) -> None:
    for kind, pattern in _REFUSED.items():
        key = next((key for key in tensors if re.search(pattern, key)), None)
        if key:
            raise ValueError(f"{what} is {kind}; such are not supported. ({key} says so.)")
    if metadata and metadata.dora:
        raise ValueError(f"{what} is DoRA (use_dora in {LORA_ADAPTER_METADATA_KEY}); such are not supported.")
    for key, tensor in tensors.items():
        if tensor.numel() and not all(extreme.isfinite() for extreme in tensor.aminmax()):
            raise ValueError(f"{what}: {key} has values that are NaN or infinite. Fetch the file again.")


def _added(fields: dict[str, torch.Tensor], module: str, metadata: Metadata | None, target, what: str):
    """Yields (parameter, what is added, scale)."""
    if fields.keys() == {"alpha"}:
        raise ValueError(f"{what}: {module} has alpha alone, and no matrices that it would scale.")
    fields = dict(fields)
    alpha = fields.pop("alpha", None)

    def pair(down: str, up: str) -> LowRank:
        missing = [name for name in (down, up) if name not in fields]
        if missing:
            raise ValueError(f"{what}: {module} has no {missing[0]}, but {', '.join(sorted(fields))}.")
        down, up = (fields.pop(name).flatten(1) if fields[name].ndim == 4 else fields.pop(name) for name in (down, up))
        if down.ndim != 2 or up.ndim != 2 or not len(down) == up.shape[1] > 0:
            raise ValueError(f"{what}: {module} has matrices of {list(down.shape)} and {list(up.shape)}.")
        return LowRank(down, up)

    def scale(rank: int) -> float:
        if alpha is not None and alpha.numel() != 1:
            raise ValueError(f"{what}: {module} has an alpha of shape {list(alpha.shape)}, which is to be one number.")
        if alpha is not None:
            return float(alpha) / rank
        return metadata.scale(target.component, target.module, rank) if metadata else 1.0

    def factor(name: str) -> LowRank | Whole:
        if name not in fields:
            return pair(f"{name}_b", f"{name}_a")
        if fields[name].ndim != 2:
            raise ValueError(f"{what}: {module} has {name} of shape {list(fields[name].shape)}, which is no matrix.")
        return Whole(fields.pop(name))

    if "down" in fields or "up" in fields:
        low = pair("down", "up")
        weight = scale(len(low.down))
        yield "weight", low, weight
        bias = fields.pop("up_bias", torch.zeros(())).float()
        if "down_bias" in fields:
            inner = fields.pop("down_bias").float()
            if inner.shape != low.down.shape[:1]:
                raise ValueError(f"{what}: {module} has a bias of shape {list(inner.shape)} for rank {len(low.down)}.")
            bias = bias + low.up.float() @ inner
        if bias.ndim and bias.any():
            yield "bias", Whole(bias), weight
    elif any(name.startswith("hada") for name in fields):
        first, second = pair("hada_w1_b", "hada_w1_a"), pair("hada_w2_b", "hada_w2_a")
        if first.shape != second.shape:
            raise ValueError(f"{what}: {module} has factors of {list(first.shape)} and {list(second.shape)}.")
        yield "weight", Hadamard(first, second), scale(len(first.down))
    elif any(name.startswith("lokr") for name in fields):
        factors = [factor("lokr_w1"), factor("lokr_w2")]
        ranks = [len(each.down) for each in factors if isinstance(each, LowRank)]
        yield "weight", Kronecker(*factors), scale(ranks[-1]) if ranks else 1.0
    if "diff" in fields:
        yield "weight", Whole(fields.pop("diff")), 1.0
    if "diff_b" in fields:
        yield "bias", Whole(fields.pop("diff_b")), 1.0
    if fields:
        raise ValueError(f"{what}: {module} has {', '.join(sorted(fields))}, which go with nothing else that it has.")


def _check(change: Change, entry: Entry | None, key: str, module: str, what: str) -> None:
    if entry is None:
        raise ValueError(f"{what}: {module} changes {key}, which this checkpoint does not have.")
    if key == "x_embedder.weight" and change.shape[0] == entry.shape[0] and change.shape[1] > entry.shape[1]:
        raise ValueError(
            f"{what} is a control LoRA, which takes a control picture; such are not supported. ({module} has "
            f"{change.shape[1]} inputs, {entry.shape[1]} in this checkpoint.)"
        )
    if entry.shape != change.shape or change.added.shape[0] % change.source.of:
        raise ValueError(
            f"{what}: {module}, which is {list(change.added.shape)}, changes {list(change.shape)} of {key}, which is "
            f"{list(entry.shape)} in this checkpoint. "
            "It was made for another model."
        )
