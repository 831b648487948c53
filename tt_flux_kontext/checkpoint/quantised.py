"""Weights of fewer bits in safetensors: float8 with and without scales is read, all else is refused by its name.

A plain float8 file has numbers. In a scaled one, as ComfyUI has them, a number times its layer's scale is the weight:
`layer.scale_weight` in files with a tensor `scaled_fp8`, or `layer.weight_scale` in those that describe each layer. The
scales of inputs are for products in float8 and change no weight.
"""

import math
from dataclasses import replace

from tt_flux_kontext.checkpoint.entry import FLOAT8
from tt_flux_kontext.checkpoint.files import CheckpointError, listing
from tt_flux_kontext.checkpoint.safetensors_file import QUANTISATION, Headers, StoredTensor

_MARK = "scaled_fp8"
_WEIGHT_SCALES = ("scale_weight", "weight_scale")
_INPUT_SCALES = ("scale_input", "input_scale")
_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e4m3fn_rowwise": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_FIELDS = {"format", "full_precision_matrix_mult", "orig_dtype"}  # of a layer's description that change no weight

# What the keys of others end with, the most telling ones first.
_OTHERS = {
    "quant_state.bitsandbytes__nf4": "bitsandbytes NF4",
    "quant_state.bitsandbytes__fp4": "bitsandbytes FP4",
    "absmax": "bitsandbytes in 4 bits",
    "SCB": "bitsandbytes in 8 bits",
    "wscales": "SVDQuant (nunchaku)",
    "smooth_factor": "SVDQuant (nunchaku)",
    "lora_down": "SVDQuant (nunchaku)",
    "qzeros": "GPTQ or AWQ",
    "qweight": "GPTQ, AWQ or one of their kind",
    "weight._data": "optimum-quanto",
}
_ADVICE = "Give it in bfloat16, float16 or float8, or as GGUF: weights get the device's formats on their way to it."


def with_scales(headers: Headers) -> dict[str, StoredTensor]:
    """The tensors of files, each with its scale; without those that say something of others.

    Raises `CheckpointError` for another quantisation, for a scale without a weight or of a strange shape, and for a
    weight whose scale is missing.
    """
    entries, formats = headers.entries, headers.formats
    _refuse_others(entries)
    for layer, given in formats.items():
        _check_format(layer, given, entries)
    tensors, scales, marked = {}, {}, []
    for key, entry in entries.items():
        layer, _, name = key.rpartition(".")
        if name == _MARK:
            marked.append(key.removesuffix(_MARK))
        elif name in _WEIGHT_SCALES + _INPUT_SCALES:
            if f"{layer}.weight" not in entries:
                raise CheckpointError(f"{key} in {entry.file} is the scale of a weight that is not there.")
            if name in _WEIGHT_SCALES:
                if layer in scales:
                    raise CheckpointError(f"{key} in {entry.file} is a second scale, beside {scales[layer].key}.")
                scales[layer] = entry
        elif name != QUANTISATION:
            tensors[key] = entry
    for layer, scale in scales.items():
        weight = tensors[f"{layer}.weight"]
        _check_scale(scale, weight)
        tensors[weight.key] = replace(weight, scale=scale)
    if scales and not marked and not formats:
        marked = [""]  # a file that says nothing, but has scales, has them for all
    for key, entry in tensors.items():
        described = key.removesuffix(".weight") in formats
        marks = len(entry.shape) > 1 and entry.dtype in FLOAT8 and key.startswith(tuple(marked))
        if (described or marks) and not entry.scale:
            raise CheckpointError(f"{key} in {entry.file} lacks its scale, though the file says that it has one.")
    return tensors


def _refuse_others(entries: dict[str, StoredTensor]) -> None:
    for ending, name in _OTHERS.items():
        for key, entry in entries.items():
            if key == ending or key.endswith(f".{ending}"):
                raise CheckpointError(f"{entry.file} is quantised by {name} ({key}), which is not read. {_ADVICE}")


def _check_scale(scale: StoredTensor, weight: StoredTensor) -> None:
    scale.check_dtype(scale.key)
    rows = weight.shape[:1]
    if math.prod(scale.shape) != 1 and scale.shape not in (rows, (*rows, 1)):
        raise CheckpointError(
            f"{scale.key} {list(scale.shape)} in {scale.file} is no scale of {weight.key} {list(weight.shape)}: that "
            "is one number, or one for each row."
        )


def _check_format(layer: str, given: dict, entries: dict[str, StoredTensor]) -> None:
    weight = entries.get(f"{layer}.weight")
    files = ", ".join(sorted({str(entry.file) for entry in entries.values()}))
    if weight is None:
        raise CheckpointError(f"{files}: the quantisation of {layer} is described, but it has no weight.")
    name = given.get("format") if isinstance(given, dict) else None
    if name not in _FORMATS:
        raise CheckpointError(f"{weight.file} is quantised as {name} ({layer}), which is not read. {_ADVICE}")
    unknown = sorted(given.keys() - _FIELDS)
    if unknown:
        raise CheckpointError(
            f"{weight.file} is quantised as {name} with {listing(unknown)} ({layer}), which is not read. {_ADVICE}"
        )
    if weight.dtype != _FORMATS[name]:
        raise CheckpointError(f"{weight.key} in {weight.file} is said to be {name}, but is {weight.dtype}.")
