"""The pipeline as Tenstorrent's media server asks it."""

import numpy as np
import torch

from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.serving.media_server import MediaServerPipeline

SIZE = {"height": 32, "width": 32, "max_area": 32 * 32, "max_sequence_length": 16}


def test_events(tiny_checkpoint, mesh_device):
    """Sections begin and end one in another, in the order of tt-metal's own pipelines, and the picture is ours."""
    pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device)
    events = []
    (picture,) = MediaServerPipeline(pipe, mesh_device, **SIZE).run_single_prompt(
        prompt="a red circle", negative_prompt="", num_inference_steps=2, seed=4, on_event=events.append
    )
    assert [(type(event).__name__.removeprefix("Section"), event.name) for event in events] == [
        ("Start", "total"),
        ("Start", "encoder"),
        ("Start", "clip_encoding"),
        ("End", "clip_encoding"),
        ("Start", "t5_encoding"),
        ("End", "t5_encoding"),
        ("End", "encoder"),
        ("Start", "denoising"),
        ("Start", "denoising_step_0"),
        ("End", "denoising_step_0"),
        ("Start", "denoising_step_1"),
        ("End", "denoising_step_1"),
        ("End", "denoising"),
        ("Start", "vae"),
        ("End", "vae"),
        ("End", "total"),
    ]
    noise = torch.Generator().manual_seed(4)
    (wanted,) = pipe(prompt="a red circle", num_inference_steps=2, generator=noise, **SIZE).images
    assert np.array_equal(np.asarray(picture), np.asarray(wanted))
