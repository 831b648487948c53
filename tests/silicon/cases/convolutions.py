"""Convolutions, in the VAE's maps [1, 1, height width, channels]."""

import torch
import torch.nn.functional as F

from tests.silicon.case import COMPACT, Bench, cases
from tests.silicon.rules import NEAR
from tt_flux_kontext.models.vae import Conv2d, FeatureMap, Upsample
from tt_flux_kontext.precision import EXACT


def image(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map's values as torch's convolutions take them, [1, C, H, W]."""
    return x[0].transpose(1, 2).unflatten(2, size)


def values(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `image`."""
    return x.flatten(2).transpose(1, 2)[None]


@cases(
    NEAR,
    conv_in_rgb={"size": (32, 32), "tiled": False},
    conv_32_32={"size": (32, 32)},
    conv_32_32_bfp8policy={"size": (32, 32), "precision": COMPACT},
    conv_32_64_odd={"size": (24, 40)},
    conv_64_32_1x1={"size": (32, 32), "padding": (0, 0, 0, 0)},
    conv_down={"size": (32, 32), "stride": 2, "padding": (0, 1, 0, 1)},
    conv_16_128={"size": (8, 8)},
    conv_out3={"size": (32, 32)},
)
def convolution(bench: Bench, x, w, b, size, stride=1, padding=(1, 1, 1, 1), tiled=True, precision=EXACT):
    """padding: (top, bottom, left, right)."""
    out_channels, in_channels, kernel, _ = w.shape
    weights = bench.weights({"c.weight": w, "c.bias": b}, precision)
    layer = Conv2d(weights, "c", in_channels, out_channels, kernel=kernel, stride=stride, padding=padding)
    top, bottom, left, right = padding
    reference = F.conv2d(F.pad(image(x, size), (left, right, top, bottom)), w, b, stride=stride)
    yield layer(FeatureMap(bench.put(x, tiled=tiled), *size)).values, values(reference)


@cases(NEAR, upsample_conv={"size": (16, 16)}, upsample_conv_odd={"size": (11, 18)})
def upsampled_convolution(bench: Bench, x, w, b, size):
    tensors = {"upsamplers.0.conv.weight": w, "upsamplers.0.conv.bias": b}
    layer = Upsample(bench.weights(tensors), len(w))
    out = layer.conv(layer.repeat(FeatureMap(bench.put(x), *size)))
    larger = F.interpolate(image(x, size), scale_factor=2, mode="nearest")
    yield out.values, values(F.conv2d(larger, w, b, padding=1))
