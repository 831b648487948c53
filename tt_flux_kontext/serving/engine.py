"""A device with a pipeline on it, ready for edits."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from loguru import logger

from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.cli.loading import load_pipeline
from tt_flux_kontext.edit import Phase
from tt_flux_kontext.parameters import Parameters
from tt_flux_kontext.serving.preview import Colours, patches
from tt_flux_kontext.serving.settings import Settings

FLUX_WIDTH = 3072  # features of FLUX.1's transformer: weights as wide are no toy


class NotReviewed(RuntimeError):
    """The weights need a filter, or someone who looks at the results."""


@dataclass(frozen=True)
class Engine:
    """`wait` returns when the device has done all that it was given."""

    pipe: FluxKontextPipeline
    wait: Callable[[], None]
    colours: Colours


@contextmanager
def open_engine(parameters: Parameters, settings: Settings, *, watched: bool = False) -> Iterator[Engine]:
    """Opens the device, loads the weights and makes one edit, so that the next finds programs and weights in place.

    Args:
        parameters: device, weights, and what else all edits have in common.
        watched: whether there is a filter, or someone who reviews results.

    Raises `NotReviewed` for weights of FLUX.1's size that nothing watches over, and what the pipeline raises.
    """
    with open_device(parameters.device) as device:
        pipe = load_pipeline(parameters, device)
        config = pipe.transformer_config
        if config.num_attention_heads * config.attention_head_dim >= FLUX_WIDTH and not watched:
            raise NotReviewed(
                "The licence of FLUX.1 [dev] asks for filters, or for review of what is generated before it is shown. "
                "Start with --filter MODULE, or with --reviewed where somebody looks at all results."
            )
        pipe.set_progress_bar_config(disable=True)
        yield Engine(pipe, partial(ttnn.synchronize_device, device), _warm_up(pipe, settings))


def run(work: Iterator[Phase], wait: Callable[[], None], done: Callable[[Phase, float], None]):
    """Runs an edit, or several, to the end, and returns what it returns.

    `done` is told of each phase when the device has done it, with its seconds.
    """
    start = time.perf_counter()
    while True:
        try:
            phase = next(work)
        except StopIteration as end:
            return end.value
        wait()
        now = time.perf_counter()
        done(phase, now - start)
        start = now


def _warm_up(pipe: FluxKontextPipeline, settings: Settings) -> Colours:
    """An edit of the usual size in as many steps as it takes to replay one, and the colours of latents."""
    start = time.perf_counter()
    edge = math.isqrt(settings.max_area) // pipe.multiple_of * pipe.multiple_of
    picture, size = patches(edge), {"height": edge, "width": edge, "max_area": edge * edge, "_auto_resize": False}
    colours = Colours(picture, pipe.encode(picture, **size))
    pipe(picture, "", num_inference_steps=2, generator=torch.Generator().manual_seed(0), **size)
    logger.info(f"Ready after {time.perf_counter() - start:.1f} s of loading")
    return colours
