"""The VAE and its parts against diffusers."""

import pytest
import torch

from reference.torch_models import bf16, in_bf16, models, weights
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Mesh
from tt_flux_kontext.models.feature_map import FeatureMap, to_float32
from tt_flux_kontext.models.rows import Rows
from tt_flux_kontext.models.vae import (
    AttentionBlock,
    Decoder,
    Encoder,
    ResnetBlock,
    VAEConfig,
    pack,
    to_picture,
    to_tokens,
)
from tt_flux_kontext.resolution import pack_latents

SIZES = ["tiny", "real"]
HEIGHT, WIDTH = 4, 6  # of the latents: 24 positions don't fill a tile

pytestmark = pytest.mark.usefixtures("reset_seeds")


def config_of(model) -> VAEConfig:
    return VAEConfig.from_dict(dict(model.config))


def feature_map(x: torch.Tensor, device, unit: int = 1) -> FeatureMap:
    """[1, C, H, W] to the device, its rows over the longest axis of chips, so many multiples of `unit`."""
    height, width = x.shape[2:]
    rows = Rows.of(Mesh(device).tokens(), height, width, unit)
    values = ttnn.to_device(rows.on_host(x[0].permute(1, 2, 0), ttnn.bfloat16), device)
    return FeatureMap(values, rows.here, width, rows)


def moments_of(encoder: Encoder, picture: torch.Tensor) -> torch.Tensor:
    image, rows = encoder.host_input(picture[0])
    return host(encoder.moments(ttnn.to_device(image, encoder.device), rows))


def host(x: FeatureMap) -> torch.Tensor:
    return x.rows.fetch(x.values).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "name", ["decoder.mid_block.resnets.0", "decoder.up_blocks.2.resnets.0"], ids=["same", "shortcut"]
)
def test_resnet_block(mesh_device, check_accuracy, size, name):
    model = models(size)["vae"]
    block = model.get_submodule(name)
    x = bf16(torch.randn(1, block.in_channels, HEIGHT, WIDTH))
    ours = ResnetBlock(config_of(model), weights(model, mesh_device).at(name), block.in_channels, block.out_channels)
    out = host(ours(to_float32(feature_map(x, mesh_device))))
    label = f"VAE residual block {block.in_channels} to {block.out_channels}, {size}"
    check_accuracy(label, out, block(x, None), in_bf16(block)(x.bfloat16(), None))


@pytest.mark.parametrize("size", SIZES)
def test_attention(mesh_device, check_accuracy, size):
    model = models(size)["vae"]
    name = "decoder.mid_block.attentions.0"
    block, channels = model.get_submodule(name), model.config.block_out_channels[-1]
    x = bf16(torch.randn(1, channels, HEIGHT, WIDTH))
    ours = AttentionBlock(config_of(model), weights(model, mesh_device).at(name), channels)
    out = host(ours(to_float32(feature_map(x, mesh_device))))
    check_accuracy(f"VAE attention, {size}", out, block(x), in_bf16(block)(x.bfloat16()))


@pytest.mark.parametrize("size", SIZES)
def test_encoder(mesh_device, check_accuracy, size):
    model = models(size)["vae"]
    picture = bf16(torch.rand(1, 3, 8 * HEIGHT, 8 * WIDTH) * 2 - 1)
    encoder = Encoder(config_of(model), weights(model, mesh_device))
    moments = moments_of(encoder, picture)

    def reference(model, dtype):
        return model.encode(picture.to(dtype)).latent_dist.parameters

    reference32, reference16 = reference(model, torch.float32), reference(in_bf16(model), torch.bfloat16)
    check_accuracy(f"VAE encoder, {size}", moments, reference32, reference16)

    def packed(model, dtype):
        mode = model.encode(picture.to(dtype)).latent_dist.mode()
        return pack_latents((mode - model.config.shift_factor) * model.config.scaling_factor)

    out = to_tokens(encoder(picture[0]))[None]
    reference32, reference16 = packed(model, torch.float32), packed(in_bf16(model), torch.bfloat16)
    check_accuracy(f"VAE encoder, packed mode, {size}", out, reference32, reference16)


@pytest.mark.parametrize("size", SIZES)
def test_decoder(mesh_device, check_accuracy, size):
    model = models(size)["vae"]
    latents = bf16(torch.randn(1, 16, HEIGHT, WIDTH))
    decoder = Decoder(config_of(model), weights(model, mesh_device))
    out = to_picture(decoder(pack_latents(latents)[0], 8 * HEIGHT, 8 * WIDTH))[None]

    def reference(model, dtype):
        return model.decode(latents.to(dtype) / model.config.scaling_factor + model.config.shift_factor).sample

    reference32, reference16 = reference(model, torch.float32), reference(in_bf16(model), torch.bfloat16)
    check_accuracy(f"VAE decoder, {size}", out, reference32, reference16)


@pytest.mark.parametrize("height, width", [(2, 2), (2, 6), (6, 10), (4, 8), (10, 14)])
def test_maps_of_any_size(mesh_device, check_accuracy, height, width):
    """Positions at all levels that fill tiles, or don't."""
    model = models("tiny")["vae"]
    config, parts, in_16 = config_of(model), weights(model, mesh_device), in_bf16(model)
    picture = bf16(torch.rand(1, 3, 8 * height, 8 * width) * 2 - 1)
    moments = moments_of(Encoder(config, parts), picture)
    expected = [m.encode(picture.to(m.dtype)).latent_dist.parameters for m in (model, in_16)]
    check_accuracy(f"VAE encoder, {height} x {width} latents", moments, *expected)
    latents = bf16(torch.randn(1, 16, height, width))
    out = to_picture(Decoder(config, parts).decode(feature_map(latents, mesh_device)))[None]
    expected = [m.decode(latents.to(m.dtype)).sample for m in (model, in_16)]
    check_accuracy(f"VAE decoder, {height} x {width} latents", out, *expected)


def test_pack_is_that_of_the_latents_on_the_host(mesh_device):
    latents = bf16(torch.randn(1, 16, HEIGHT, WIDTH))
    out = ttnn.to_torch(pack(feature_map(latents, mesh_device), channels=16))[0]
    assert torch.equal(out.float(), pack_latents(latents))
