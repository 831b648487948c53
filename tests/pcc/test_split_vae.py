"""The VAE with its maps' rows over many emulated chips: against one chip, and against torch."""

import pytest
import torch

from reference.accuracy import relative_rmse
from reference.state_dict import StateDict
from reference.torch_models import bf16, in_bf16, models, weights
from tests.pcc.test_vae import config_of, feature_map, host
from tt_flux_kontext.backend import choose, ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.mesh import Mesh
from tt_flux_kontext.models.feature_map import Conv2d, to_float32
from tt_flux_kontext.models.group_norm import group_norm
from tt_flux_kontext.models.rows import Rows
from tt_flux_kontext.models.vae import (
    AttentionBlock,
    Decoder,
    Downsample,
    Encoder,
    Upsample,
    VAEConfig,
    to_picture,
    to_tokens,
)
from tt_flux_kontext.models.weights import Weights
from tt_flux_kontext.precision import FULL
from tt_flux_kontext.resolution import pack_latents

CHANNELS = 32
MESHES = [("n300", (1, 2)), ("t3k", (2, 4)), ("t3k", (1, 8)), ("p150x4", (2, 2)), ("galaxy", (8, 4))]
# Latents that 8 chips divide; that end on the last of them, and on the one in the middle.
SIZES = [(16, 4), (30, 2), (6, 10)]

pytestmark = [
    pytest.mark.usefixtures("reset_seeds"),
    pytest.mark.skipif(choose() != "emulated", reason="the chips that there are have one form"),
]
of_sizes = pytest.mark.parametrize("height, width", SIZES, ids=[f"{height} rows" for height, _ in SIZES])


def on_meshes(*meshes: tuple[str, tuple[int, int]]):
    return pytest.mark.parametrize(
        "device_params",
        [{"name": f"emulated:{system}", "mesh_shape": shape} for system, shape in meshes],
        ids=[f"{system} {rows}x{columns}" for system, (rows, columns) in meshes],
        indirect=True,
    )


on_eight = on_meshes(("t3k", (1, 8)))


def on(device, **tensors: torch.Tensor) -> Weights:
    return Weights(StateDict(tensors), FULL, Mesh(device).tokens())


@of_sizes
def test_convolutions_are_those_of_one_chip_to_the_bit(height, width):
    """At borders of chips and of the map."""
    x = bf16(torch.randn(1, CHANNELS, height, width))
    parameters = {"weight": bf16(torch.randn(CHANNELS, CHANNELS, 3, 3) / 17), "bias": bf16(torch.randn(CHANNELS))}
    names = ("same", "downsamplers.0.conv", "upsamplers.0.conv")
    tensors = {f"{name}.{part}": values for name in names for part, values in parameters.items()}
    results = []
    for system, mesh in [("n150", (1, 1)), *MESHES]:
        with open_device(f"emulated:{system}", mesh) as device:
            layers, placed = on(device, **tensors), feature_map(x, device, unit=2)
            outs = [layer(to_float32(placed)) for layer in (Downsample(layers, CHANNELS), Upsample(layers, CHANNELS))]
            results.append([host(out) for out in (Conv2d(layers, "same", CHANNELS, CHANNELS)(placed), *outs)])
    for of_mesh in results[1:]:
        for ours, of_one_chip in zip(of_mesh, results[0], strict=True):
            assert torch.equal(ours, of_one_chip)


@of_sizes
@on_eight
def test_norm_of_maps_far_from_zero(mesh_device, height, width):
    """With a mean of four standard deviations, whose square the variance must not drown in."""
    config = VAEConfig(norm_num_groups=4)
    x = torch.randn(1, CHANNELS, height, width) + 4 * torch.randn(CHANNELS, 1, 1).repeat_interleave(2, 0)[:CHANNELS]
    weight, bias = bf16(torch.randn(CHANNELS)), bf16(torch.randn(CHANNELS))
    norm = group_norm(config, on(mesh_device, **{"n.weight": weight, "n.bias": bias}), "n", CHANNELS)
    out = host(norm(to_float32(feature_map(bf16(x), mesh_device, unit=2))))
    reference = torch.nn.functional.group_norm(bf16(x), 4, weight, bias, eps=1e-6)
    assert relative_rmse(out, reference) < 1e-3


@of_sizes
@on_eight
def test_attention_over_all_chips(mesh_device, check_accuracy, request, height, width):
    model = models("tiny")["vae"]
    name = "decoder.mid_block.attentions.0"
    block, channels = model.get_submodule(name), model.config.block_out_channels[-1]
    x = bf16(torch.randn(1, channels, height, width))
    ours = AttentionBlock(config_of(model), weights(model, mesh_device, Mesh(mesh_device).tokens()).at(name), channels)
    out = host(ours(to_float32(feature_map(x, mesh_device, unit=2))))
    check_accuracy(f"VAE attention, {request.node.callspec.id}", out, block(x), in_bf16(block)(x.bfloat16()))


@of_sizes
@on_eight
def test_eight_chips(mesh_device, check_accuracy, request, height, width):
    check_whole(mesh_device, check_accuracy, request.node.callspec.id, height, width)


@on_meshes(*(mesh for mesh in MESHES if mesh != ("t3k", (1, 8))))
def test_other_meshes(mesh_device, check_accuracy, request):
    check_whole(mesh_device, check_accuracy, request.node.callspec.id, *SIZES[-1])


def check_whole(device, check_accuracy, label: str, height: int, width: int) -> None:
    """A picture of so many latents there, and latents back."""
    model = models("tiny")["vae"]
    config, parts, in_16 = config_of(model), weights(model, device, Mesh(device).tokens()), in_bf16(model)
    scale, shift, pixels = config.scaling_factor, config.shift_factor, (8 * height, 8 * width)
    picture = bf16(torch.rand(1, 3, *pixels) * 2 - 1)
    tokens = to_tokens(Encoder(config, parts)(picture[0]))[None]
    modes = [m.encode(picture.to(m.dtype)).latent_dist.mode() for m in (model, in_16)]
    check_accuracy(f"VAE encoder, {label}", tokens, *(pack_latents((mode - shift) * scale) for mode in modes))
    latents = bf16(torch.randn(1, 16, height, width))
    out = to_picture(Decoder(config, parts)(pack_latents(latents)[0], *pixels))[None]
    expected = [m.decode(latents.to(m.dtype) / scale + shift).sample for m in (model, in_16)]
    check_accuracy(f"VAE decoder, {label}", out, *expected)


@on_eight
@pytest.mark.parametrize("around", [0, 1])
def test_rows_reach_their_chips(mesh_device, around):
    x = torch.randn(6, 5, 3)
    rows = Rows.of(Mesh(mesh_device).tokens(), 6, 5, unit=2)
    assert (rows.here, rows.all, rows.padded) == (2, 16, True)
    assert (rows.resized(4).height, rows.resized(4).width) == (12, 10)
    placed = ttnn.to_device(rows.on_host(x, ttnn.float32, tiled=False, around=around), mesh_device)
    assert tuple(placed.shape) == (1, 1, (2 + 2 * around) * 5, 3)
    if around:
        second = ttnn.to_torch(ttnn.get_device_tensors(placed)[1]).view(4, 5, 3)
        assert torch.equal(second, x[1:5])
    else:
        assert torch.equal(rows.fetch(placed), x)
