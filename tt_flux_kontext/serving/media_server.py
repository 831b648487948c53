"""The pipeline as Tenstorrent's media server runs one: a method, and events by which it measures.

The names of events and sections are those of tt-metal's `models/tt_dit/pipelines`. That server knows events by the
names of their classes, and nothing of tt-metal is needed here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.edit import Phase
from tt_flux_kontext.pipeline import FluxKontextPipeline
from tt_flux_kontext.serving.engine import run


@dataclass(frozen=True)
class SectionStart:
    name: str


@dataclass(frozen=True)
class SectionEnd:
    name: str


Event = SectionStart | SectionEnd


class MediaServerPipeline:
    """Of a pipeline and its device. `arguments` are of each call, such as `max_area`."""

    def __init__(self, pipe: FluxKontextPipeline, device, **arguments):
        self.pipe = pipe
        self.scheduler = pipe.scheduler  # by which that server names the sampler
        self._wait = partial(ttnn.synchronize_device, device)
        self._arguments = arguments

    def run_single_prompt(
        self,
        *,
        prompt: str,
        negative_prompt: str | None = None,
        num_inference_steps: int,
        seed: int = 0,
        on_event: Callable[[Event], None] | None = None,
        **arguments,
    ) -> list[Image.Image]:
        """One picture. Events come when the device has done what they are of. Raises what the pipeline raises.

        `arguments` are others of the pipeline's, such as `image`, `mask_image` and `guidance_scale`.
        """
        sections = _Sections(on_event or (lambda event: None))
        arguments = {
            **self._arguments,
            **arguments,
            "prompt": prompt,
            "negative_prompt": negative_prompt or None,
            "num_inference_steps": num_inference_steps,
            "generator": torch.Generator().manual_seed(seed),
        }
        with self.pipe.turn:
            result = run(self.pipe.dispatch(**arguments), self._wait, sections.after)
        sections.end()
        return result.images


class _Sections:
    """Sections one in another, opened and closed as phases end, of which each begins where the last one ended."""

    def __init__(self, tell: Callable[[Event], None]):
        self._tell = tell
        self._open: list[str] = []
        self._enter("total", "encoder", "clip_encoding")

    def after(self, phase: Phase, seconds: float) -> None:
        if phase.name == "clip":
            self._enter("total", "encoder", "t5_encoding")
        elif phase.name == "t5":
            self._enter("total")
        elif phase.name == "transformer weights" and "denoising" not in self._open:
            self._enter("total", "denoising", "denoising_step_0")
        elif phase.step == phase.steps and phase.step:
            self._enter("total", "vae")
        elif phase.step:
            self._enter("total", "denoising", f"denoising_step_{phase.step}")

    def end(self) -> None:
        self._enter()

    def _enter(self, *sections: str) -> None:
        """Leaves those that aren't among them, the innermost first, and enters the others."""
        while self._open and self._open != list(sections[: len(self._open)]):
            self._tell(SectionEnd(self._open.pop()))
        for name in sections[len(self._open) :]:
            self._open.append(name)
            self._tell(SectionStart(name))
