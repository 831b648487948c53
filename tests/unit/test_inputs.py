"""What the pipeline is called with: refused with one clear sentence, or understood."""

import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline as Theirs
from PIL import Image

from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.residency import DoesNotFit

EMBEDS = {"prompt_embeds": torch.zeros(1, 8, 96), "pooled_prompt_embeds": torch.zeros(1, 64)}
NEGATIVE = {"true_cfg_scale": 2.0}
FAST = {"max_area": 64 * 64, "max_sequence_length": 32, "num_inference_steps": 1, "output_type": "latent"}


def negative(tokens: int, value: float = 0.0) -> dict:
    return {
        "negative_prompt_embeds": torch.full((1, tokens, 96), value),
        "negative_pooled_prompt_embeds": torch.zeros(1, 64),
    }


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
        ({"prompt": "a", "prompt_2": 3}, "`prompt_2` has to be of type `str` or `list`"),
        ({"prompt": ["a", "b"], "prompt_2": ["c"]}, "`prompt` has 2 entries and `prompt_2` has 1"),
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
        (EMBEDS | negative(7) | NEGATIVE, "must have the same shape"),
        (
            {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, 8, 96)},
            "Cannot forward both",
        ),
        (EMBEDS | {"prompt_embeds": torch.zeros(1, 8, 95)}, "95 and 64 features, but this transformer takes 96 and 64"),
        (EMBEDS | {"pooled_prompt_embeds": torch.zeros(1, 65)}, "96 and 65 features"),
        (EMBEDS | {"prompt_embeds": [[1.0]]}, "`prompt_embeds` has to be a tensor of floats but is list"),
        (EMBEDS | {"prompt_embeds": torch.zeros(1, 8, 96, dtype=torch.int64)}, "tensor of floats but is torch.int64"),
        (EMBEDS | {"prompt_embeds": torch.zeros(1, 0, 96)}, "of the same batch"),
        (EMBEDS | {"prompt_embeds": torch.full((1, 8, 96), torch.nan)}, "`prompt_embeds` has values that are NaN"),
        (EMBEDS | {"pooled_prompt_embeds": torch.full((1, 64), torch.inf)}, "`pooled_prompt_embeds` has values"),
        ({"prompt": "a"} | negative(8, torch.nan), "`negative_prompt_embeds` has values"),
        ({"prompt": "a", "latents": torch.full((1, 4096, 64), torch.nan)}, "`latents` has values"),
        ({"prompt": "a", "latents": np.zeros((1, 4096, 64))}, "`latents` has to be a tensor"),
        ({"prompt": "a", "image": torch.full((3, 64, 64), torch.nan)}, "`image` has values"),
        ({"prompt": "a", "image": torch.zeros(1, 64, 64)}, "pass their `height` and `width`"),
        ({"prompt": "a", "image": torch.zeros(1, 64, 64), "height": 64}, "pass their `height` and `width`"),
        ({"prompt": "a", "image": torch.zeros(1, 63, 64), "height": 1024, "width": 1024}, "63 tokens, but 1024 x 1024"),
        (
            {"prompt": ["a", "b"], "image": [Image.new("RGB", (64, 64)), Image.new("RGB", (64, 256))]},
            r"`image` has pictures of different shapes \(64 x 64, 64 x 256\)",
        ),
        ({"prompt": "a", "background": "transparentish"}, "`background` has to be a colour"),
        ({"prompt": "a", "guidance_scale": math.nan}, "`guidance_scale` must be finite but is nan"),
        ({"prompt": "a", "true_cfg_scale": math.inf}, "`true_cfg_scale` must be finite but is inf"),
        ({"prompt": "a", "sigmas": [1.0, math.nan]}, "`sigmas` must be from 0 to 1 but has nan"),
        ({"prompt": "a", "sigmas": [1.5, 0.5]}, "`sigmas` must be from 0 to 1 but has 1.5"),
        ({"prompt": "a", "sigmas": 0.5}, "`sigmas` has to be a list of numbers but is 0.5"),
        ({"prompt": "a", "sigmas": ["x"]}, "`sigmas` has to be a list of numbers"),
        ({"prompt": "a", "guidance_scale": "3"}, "`guidance_scale` has to be a number but is '3'"),
        ({"prompt": "a", "guidance_scale": None}, "`guidance_scale` has to be a number"),
        ({"prompt": "a", "num_inference_steps": 2.5}, "`num_inference_steps` has to be a whole number but is 2.5"),
        ({"prompt": "a", "num_images_per_prompt": True}, "`num_images_per_prompt` has to be a whole number"),
        ({"prompt": "a", "max_sequence_length": "64"}, "`max_sequence_length` has to be a whole number"),
        ({"prompt": "a", "max_sequence_length": 0}, "`max_sequence_length` must be at least 1"),
        ({"prompt": "a", "height": math.nan}, "`height` has to be a whole number but is nan"),
        ({"prompt": "a", "max_area": 1e6}, "`max_area` has to be a whole number"),
        ({"prompt": "a", "max_area": 0}, "must be positive"),
        ({"prompt": "a", "prompt_2": torch.zeros(2)}, "`prompt_2` has to be of type `str` or `list`"),
        ({"prompt": "a", "guidance_scale": 10**400}, "`guidance_scale` must be finite"),
        ({"prompt": "a", "height": 10**400}, "`height` must be at most"),
        ({"prompt": "a", "width": torch.zeros(2)}, "`width` has to be a whole number"),
        ({"prompt": "a", "_auto_resize": "no"}, "`_auto_resize` has to be True or False but is 'no'"),
        ({"prompt": "a", "diffusers_sizes": 2}, "`diffusers_sizes` has to be True or False but is 2"),
        ({"prompt": "a", "return_dict": None}, "`return_dict` has to be True or False"),
        ({"prompt": "a", "output_type": ["pil"]}, "`output_type` must be"),
        (
            {"prompt": "a", "callback_on_step_end_tensor_inputs": "latents"},
            "has to be a list of names but is 'latents'",
        ),
        ({"prompt": "a", "generator": 7}, "`generator` has to be a torch.Generator"),
        ({"prompt": "a", "generator": [7]}, "`generator` has to be a torch.Generator"),
        ({"prompt": "a", "callback_on_step_end": 7}, "`callback_on_step_end` has to be a function but is int"),
        ({"prompt": "a", "ip_adapter_image": Image.new("RGB", (8, 8))}, "`ip_adapter_image` is not supported"),
    ],
)
def test_refused(pipe, mesh_device, arguments, match):
    free = dram_bytes(mesh_device)
    with pytest.raises((ValueError, TypeError), match=match):
        pipe(**arguments)
    assert dram_bytes(mesh_device) == free


class Taken(Exception):
    """In place of a run."""


ODD = [
    None, "", "x", b"x", -1, 0, 1, 2, 1.5, math.nan, math.inf, -math.inf, 10**30, -(10**400), 1 + 2j, True,
    [], {}, (), [None], ["x"], [math.nan], [[1]], {"a": 1}, object(), len,
    np.zeros(0), np.zeros((2, 2)), np.zeros((4, 4, 3)), np.float32(2), np.int64(2), np.float64(math.nan),
    torch.tensor(1.0), torch.tensor(math.nan), torch.zeros(0), torch.zeros(1, 8, 96), torch.zeros(1, 16, 64),
    torch.zeros(1, 16, 64, dtype=torch.int32), torch.zeros(1, 16, 64, dtype=torch.complex64), torch.zeros(1, 3, 0, 4),
    Image.new("RGB", (0, 0)), Image.new("RGB", (30, 30)), [Image.new("RGB", (3, 3)), None], torch.Generator(),
]  # fmt: skip


@pytest.mark.parametrize("name", list(inspect.signature(FluxKontextPipeline.__call__).parameters)[1:])
def test_odd_values(pipe, monkeypatch, name):
    """Are taken, or refused in a sentence that has the argument's name: no error of a library is seen."""

    def take(edits, begins):
        raise Taken

    monkeypatch.setattr(pipe._editor, "run", take)
    text = EMBEDS if name in EMBEDS else {"prompt": "a"}
    for value in ODD:
        try:
            pipe(**text | FAST | {name: value})
        except Taken:
            continue
        except (ValueError, TypeError, DoesNotFit) as error:
            assert name.strip("_") in str(error) or "pixels" in str(error), (value, error)


def test_arguments_stand_as_in_diffusers():
    """In the same order, with the same defaults; ours come last."""
    ours, theirs = (
        list(inspect.signature(each.__call__).parameters.values())[1:] for each in (FluxKontextPipeline, Theirs)
    )
    assert [one.name for one in ours[: len(theirs)]] == [one.name for one in theirs]
    assert [one.name for one in ours[len(theirs) :]] == [
        "background",
        "diffusers_sizes",
        "mask_image",
        "strength",
        "padding_mask_crop",
        "image_reference",
        "paste",
        "reference_images",
        "reference_method",
    ]
    for one, other in zip(ours, theirs, strict=False):
        assert one.default == (tuple(other.default) if isinstance(other.default, list) else other.default)


@pytest.mark.parametrize(
    "arguments,warning",
    [
        ({}, None),
        ({"true_cfg_scale": 3.0, "negative_prompt": ""}, None),
        ({"true_cfg_scale": 3.0}, "`true_cfg_scale` has no effect without `negative_prompt`"),
        ({"negative_prompt": "blue"}, "The negative prompt has no effect: `true_cfg_scale` is 1.0"),
        (negative(8), "The negative prompt has no effect: `true_cfg_scale` is 1.0"),
        ({"negative_prompt_2": "blue"}, "`negative_prompt_2` has no effect without `negative_prompt`"),
        ({"callback_on_step_end_tensor_inputs": None, "callback_on_step_end": lambda *_: {}}, None),
        ({"ip_adapter_image": None, "joint_attention_kwargs": None}, None),
        ({"height": 0, "width": 0}, None),
        ({"prompt_2": ""}, None),
    ],
)
def test_taken(pipe, warned, arguments, warning):
    """What has no effect, and is no mistake that should stop a run, is said in one line."""
    pipe(prompt="a", **FAST | arguments)
    assert len(warned) == (1 if warning else 0)
    assert warning is None or warning in warned[0]


@pytest.mark.parametrize(
    "words,length,lines",
    [
        (5, 32, []),
        (100, 512, ["CLIP reads the first 77 of 102 tokens of the prompt 'red red"]),
        (100, 90, ["CLIP reads the first 77 of 102 tokens", "T5 reads the first 90 of 101 tokens"]),
    ],
)
def test_long_prompts(pipe, warned, capfd, caplog, words, length, lines):
    pipe(prompt=" ".join(["red"] * words), **FAST | {"max_sequence_length": length})
    assert len(warned) == len(lines)
    for line, start in zip(warned, lines, strict=True):
        assert line.startswith(start)
    if lines:
        assert warned[0].endswith(f"T5 still reads the first {length}.")
    assert "indexing errors" not in caplog.text + capfd.readouterr().err


def test_long_prompts_of_one_encoder(pipe, warned):
    """T5 doesn't read CLIP's prompt where it has its own; and a prompt that is there twice is warned of once."""
    pipe(prompt=[" ".join(["red"] * 100)] * 2, prompt_2="red", **FAST)
    assert len(warned) == 1 and "CLIP reads" in warned[0] and "T5" not in warned[0]


def test_unknown_precision(tiny_checkpoint, mesh_device):
    with pytest.raises(ValueError, match="Unknown precision 'int4': it is one of bf16, bfp8_mixed, bfp8"):
        FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device, precision="int4")
