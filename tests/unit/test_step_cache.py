"""The step cache against diffusers' hooks: which steps do without the blocks, and ratios of magnitudes."""

import ast
import copy
import random

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxKontextInpaintPipeline, FluxTransformer2DModel, MagCacheConfig
from PIL import Image

from reference.accuracy import relative_rmse
from reference.pipeline import load, quiet
from tests.pcc.test_pipeline import ours, picture
from tt_flux_kontext.step_cache import KONTEXT_MAG_RATIOS, full_steps
from tt_flux_kontext.trace import VARIABLE

SMALL = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 1,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (2, 2, 4),
}


def steps_of_diffusers(config: MagCacheConfig) -> list[bool]:
    """Whether the block ran in each step of a small model."""
    model = FluxTransformer2DModel(**SMALL)
    ran = []
    model.single_transformer_blocks[0].norm.register_forward_hook(lambda *_: ran.append(True))
    model.enable_cache(config)
    full = []
    for _ in range(config.num_inference_steps):
        model(
            hidden_states=torch.randn(1, 2, 4),
            encoder_hidden_states=torch.randn(1, 2, 8),
            pooled_projections=torch.randn(1, 8),
            timestep=torch.ones(1),
            img_ids=torch.zeros(2, 3),
            txt_ids=torch.zeros(2, 3),
        )
        full.append(bool(ran))
        ran.clear()
    return full


@pytest.mark.parametrize("seed", range(12))
def test_steps_are_those_of_diffusers(seed):
    draw = random.Random(seed)
    config = MagCacheConfig(
        mag_ratios=[draw.uniform(0.9, 1.1) for _ in range(draw.choice([5, 28]))],
        threshold=draw.choice([0.0, 0.03, 0.06, 0.2, 10.0]),
        max_skip_steps=draw.randrange(6),
        retention_ratio=draw.choice([0.0, 0.2, 0.5, 1.0]),
        num_inference_steps=draw.randrange(1, 30),
    )
    assert full_steps(config) == steps_of_diffusers(config)


def test_half_of_the_steps_of_kontext():
    """MagCache's own settings for it."""
    config = MagCacheConfig(mag_ratios=KONTEXT_MAG_RATIOS, threshold=0.05, max_skip_steps=4)
    assert sum(full_steps(config)) == sum(steps_of_diffusers(config))


STEPS = 6
EDIT = {"prompt": "make it red", "max_area": 64 * 64, "num_inference_steps": STEPS, "max_sequence_length": 32}
EVERY_OTHER = {"threshold": 10.0, "max_skip_steps": 1, "retention_ratio": 0.0, "num_inference_steps": STEPS}


def latents(pipe, **arguments) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(**EDIT | {"generator": generator, "output_type": "latent"} | arguments).images


def test_ratios_are_those_of_diffusers(mesh_device, tiny_checkpoint, capsys):
    """Measuring them changes no bit, and they are there until the next time."""
    edit = {"image": picture(64, 64), "height": 64, "width": 64, "_auto_resize": False}
    pipe, reference = ours(tiny_checkpoint, mesh_device), load(tiny_checkpoint, torch.float32)
    plain = latents(pipe, **edit)
    for either in (pipe, reference.transformer):
        either.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    with quiet():
        assert torch.equal(latents(pipe, **edit), plain)
        capsys.readouterr()
        latents(reference, **edit)
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]
    assert pipe.mag_ratios == pytest.approx(ast.literal_eval(printed), rel=0.01)
    pipe.disable_cache()
    latents(pipe, **edit)
    assert len(pipe.mag_ratios) == STEPS and not pipe.is_cache_enabled


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_results_keep_their_own(mesh_device, tiny_checkpoint, monkeypatch, prompts):
    """Side by side as one by one, with traces as without."""
    pipe = ours(tiny_checkpoint, mesh_device)
    pipe.enable_cache(MagCacheConfig(mag_ratios=[1.0], **EVERY_OTHER))
    noise = torch.randn(2 * len(prompts), 16, pipe.transformer_config.in_channels)
    together = latents(pipe, prompt=prompts, num_images_per_prompt=2, latents=noise)
    monkeypatch.setenv(VARIABLE, "off")
    assert torch.equal(latents(pipe, prompt=prompts, num_images_per_prompt=2, latents=noise), together)
    alone = [latents(pipe, prompt=prompts[i // 2], latents=noise[i : i + 1]) for i in range(len(noise))]
    assert torch.equal(torch.cat(alone), together)


class Alternating(torch.nn.Module):
    """Two transformers that take turns, as diffusers' one would forget which of two prompts was at work."""

    def __init__(self, transformer):
        super().__init__()
        self.both = torch.nn.ModuleList([transformer, copy.deepcopy(transformer)])
        self.config, self.dtype, self.device = transformer.config, transformer.dtype, transformer.device
        self.calls = 0

    def forward(self, **inputs):
        self.calls += 1
        return self.both[(self.calls - 1) % 2](**inputs)


def test_guidance_keeps_both_prompts(mesh_device, tiny_checkpoint):
    config = MagCacheConfig(mag_ratios=[1.0], **EVERY_OTHER)
    pipe, reference = ours(tiny_checkpoint, mesh_device), load(tiny_checkpoint, torch.float32)
    noise = torch.randn(1, 16, pipe.transformer_config.in_channels)
    edit = {"negative_prompt": "blue", "true_cfg_scale": 3.0, "latents": noise}
    reference.transformer = Alternating(reference.transformer)
    for transformer in (pipe, *reference.transformer.both):
        transformer.enable_cache(config)
    with quiet():
        size = {"height": 64, "width": 64}
        error = relative_rmse(latents(pipe, **edit), latents(reference, **edit, **size))
    assert error < 0.03


def test_masked_edits_keep_what_they_should(mesh_device, tiny_checkpoint):
    config = MagCacheConfig(mag_ratios=[1.0], **EVERY_OTHER)
    pipe, reference = ours(tiny_checkpoint, mesh_device), load(tiny_checkpoint, torch.float32)
    inpainting = FluxKontextInpaintPipeline(**reference.components)
    inpainting.set_progress_bar_config(disable=True)
    for transformer in (pipe, reference.transformer):
        transformer.enable_cache(config)
    upper_half = Image.new("L", (64, 64))
    upper_half.paste(255, (0, 0, 64, 32))
    edit = {"image": picture(64, 64), "mask_image": upper_half, "strength": 0.5}
    edit |= {"num_inference_steps": 2 * STEPS, "_auto_resize": False}
    with quiet():
        error = relative_rmse(latents(pipe, **edit), latents(inpainting, **edit, height=64, width=64))
    assert error < 0.03


def test_what_it_can_not_be(mesh_device, tiny_checkpoint):
    pipe = ours(tiny_checkpoint, mesh_device)
    with pytest.raises(TypeError, match="diffusers' MagCacheConfig, not FirstBlockCacheConfig"):
        pipe.enable_cache(FirstBlockCacheConfig())
    pipe.enable_cache(MagCacheConfig(mag_ratios=KONTEXT_MAG_RATIOS))
    with pytest.raises(ValueError, match=r"for 28 steps but the edit has 6: enable it with .*num_inference_steps=6"):
        latents(pipe)
