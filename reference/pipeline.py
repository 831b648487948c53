"""The diffusers pipeline of a checkpoint, and recordings of what goes through its modules."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FluxKontextPipeline

TINY_KONTEXT = Path(__file__).parents[1] / "demo" / "tiny_kontext"
"""A tiny checkpoint that `reference.train` made: it edits pictures of coloured shapes, 128 x 128."""


@dataclass(frozen=True)
class Call:
    """One call of a module: positional inputs, named inputs, and the output, tensors as detached copies."""

    args: tuple
    kwargs: dict[str, Any]
    output: Any


def load(folder_or_hub_id: str | Path, dtype: torch.dtype = torch.float32) -> FluxKontextPipeline:
    """The diffusers pipeline of a checkpoint on the CPU, in evaluation mode, without progress bars or advice.

    Args:
        folder_or_hub_id: a local folder or a hub id.
        dtype: of all weights and activations.

    Raises:
        OSError: there is no such checkpoint.
    """
    with quiet():
        pipe = FluxKontextPipeline.from_pretrained(str(folder_or_hub_id), dtype=dtype, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def record(model: torch.nn.Module, *names: str) -> Iterator[dict[str, list[Call]]]:
    """Records every call of the named submodules while the block runs.

    Args:
        model: any module, for example `pipe.transformer`.
        names: submodule names as in `model.named_modules()`; "" is the model itself.

    Yields:
        The calls by name, in order of time.

    Raises:
        AttributeError: the model has no such submodule.
    """
    calls: dict[str, list[Call]] = {name: [] for name in names}
    hooks = []
    try:
        for name in names:

            def keep(_module, args, kwargs, output, name=name):
                calls[name].append(Call(_detached(args), _detached(kwargs), _detached(output)))

            hooks.append(model.get_submodule(name).register_forward_hook(keep, with_kwargs=True))
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings, advice and progress bars of diffusers and transformers while the block runs."""
    levels = [(library.utils.logging, library.utils.logging.get_verbosity()) for library in (diffusers, transformers)]
    bars = [library for library, _ in levels if library.is_progress_bar_enabled()]
    try:
        for library, _ in levels:
            library.set_verbosity(logging.CRITICAL)
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()


def _detached(value: Any) -> Any:
    """The same nest of tuples, lists and dicts with its tensors copied."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):  # includes the output records of diffusers and transformers
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_detached(item) for item in value)
    return value
