"""What the pipeline is called with: refused with one clear sentence, or understood."""

import numpy as np
import pytest
import torch
from PIL import Image

from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.device import dram_bytes

EMBEDS = {"prompt_embeds": torch.zeros(1, 8, 96), "pooled_prompt_embeds": torch.zeros(1, 64)}
NEGATIVE = {"true_cfg_scale": 2.0}


@pytest.fixture
def pipe(tiny_checkpoint, mesh_device):
    pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "arguments,match",
    [
        ({}, "Provide either `prompt` or `prompt_embeds`"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": 3}, "has to be of type `str` or `list`"),
        ({"prompt": ["a", None]}, "has to be of type `str` or `list`"),
        ({"prompt": "a", "prompt_2": []}, "`prompt_2` is an empty list"),
        ({"prompt": ["a", "b"], "prompt_2": "c"}, "`prompt` has 2 entries and `prompt_2` has 1"),
        ({"prompt": "a"} | EMBEDS, "both `prompt` and `prompt_embeds`"),
        ({"prompt_2": "a"} | EMBEDS, "both `prompt_2` and `prompt_embeds`"),
        ({"prompt_embeds": EMBEDS["prompt_embeds"]}, "With `prompt_embeds`, `pooled_prompt_embeds`"),
        ({"pooled_prompt_embeds": EMBEDS["pooled_prompt_embeds"]}, "With `pooled_prompt_embeds`, `prompt_embeds`"),
        (EMBEDS | {"pooled_prompt_embeds": torch.zeros(2, 64)}, "of the same batch"),
        ({"prompt": "a", "num_inference_steps": 0}, "`num_inference_steps` must be at least 1"),
        ({"prompt": "a", "sigmas": []}, "`sigmas` is empty"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "`num_images_per_prompt` must be at least 1"),
        ({"prompt": "a", "max_sequence_length": 513}, "from 1 to 512 but is 513"),
        ({"prompt": "a", "output_type": "jpeg"}, "`output_type` must be"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["noise"]}, r"has to be in .* but found \['noise'\]"),
        ({"prompt": "a", "height": -64}, "must be positive"),
        ({"prompt": "a", "height": 16, "width": 160_000}, "too narrow"),
        ({"prompt": "a", "latents": torch.zeros(1, 5, 64)}, r"must have the shape \[1, 4096, 64\]"),
        ({"prompt": "a", "generator": [torch.Generator()] * 2}, "list of generators of length 2"),
        ({"prompt": "a", "image": []}, "`image` is an empty list"),
        ({"prompt": "a", "image": "picture.png"}, "`image` must be PIL, numpy or torch"),
        ({"prompt": "a", "image": [Image.new("RGB", (8, 8)), np.zeros((8, 8, 3))]}, "list of mixed kinds"),
        ({"prompt": "a", "image": torch.zeros(1, 5, 64, 64)}, "neither pictures"),
        ({"prompt": "a", "image": torch.zeros(1, 16, 7, 8)}, "even height and width"),
        ({"prompt": "a", "image": [Image.new("RGB", (64, 64))] * 2}, "Cannot duplicate `image` of batch size 2 to 1"),
        (
            {"prompt": "a", "image": Image.new("RGB", (9, 99)), "_auto_resize": False},
            "both must be at least 16",
        ),
        ({"prompt": "a", "negative_prompt": ["b", "c"]} | NEGATIVE, "1 prompts and 2 negative ones"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 8, 96)} | NEGATIVE, "negative_pooled_prompt_embeds"),
        (EMBEDS | {"negative_prompt": "b"} | NEGATIVE, "in one form"),
    ],
)
def test_refused(pipe, mesh_device, arguments, match):
    free = dram_bytes(mesh_device)
    with pytest.raises((ValueError, TypeError), match=match):
        pipe(**arguments)
    assert dram_bytes(mesh_device) == free


def test_unknown_precision(tiny_checkpoint, mesh_device):
    with pytest.raises(ValueError, match="Unknown precision 'int4': it is one of bf16, bfp8_mixed, bfp8"):
        FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device, precision="int4")
