"""Maps of features, as the VAE's layers pass them on, and the layers themselves: convolution, group norm, SiLU, sum.

Between blocks a map is float32, since TT-NN's group norm takes its statistics in the format of the map, and in bfloat16
they are 0.5 % off and more. Convolutions take and give bfloat16.
"""

import math
from typing import NamedTuple

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.weights import Weights

EPS = 1e-6
_BLOCK_ROWS = 16  # of tiles, in group norm: 0.5 MB of a core's L1, twice that where a group straddles tiles


class FeatureMap(NamedTuple):
    """A map of height x width positions: values [1, 1, height width, channels]."""

    values: "ttnn.Tensor"
    height: int
    width: int


def to_float32(x: FeatureMap) -> FeatureMap:
    return x._replace(values=ttnn.typecast(x.values, ttnn.float32))


def to_bfloat16(x: FeatureMap) -> FeatureMap:
    return x._replace(values=ttnn.typecast(x.values, ttnn.bfloat16))


class Conv2d:
    """torch.nn.Conv2d, with padding as (top, bottom, left, right).

    TT-NN arranges the weights for the size of the map at hand; they stay so until another size comes.
    """

    def __init__(
        self,
        weights: Weights,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    ):
        self.host_weight = weights.host(f"{name}.weight", (out_channels, in_channels, kernel, kernel))
        self.host_bias = weights.host(f"{name}.bias", (out_channels,), view=(1, 1, 1, out_channels))
        self.geometry = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": (kernel, kernel),
            "stride": (stride, stride),
            "padding": padding,
        }
        self.device = weights.device
        self.compute_config = weights.compute_config
        self.prepared_for = None

    def __call__(self, x: FeatureMap) -> FeatureMap:
        if self.prepared_for != (x.height, x.width):
            self.weight, self.bias = self.host_weight, self.host_bias
        # Rows of positions that fill no tiles: TT-NN would cut them out of tiles with index tables as large as the map,
        # and keep those. From row-major order it need not.
        row_major = x.width % ttnn.TILE_SIZE != 0
        values, (height, width), (self.weight, self.bias) = ttnn.conv2d(
            input_tensor=ttnn.to_layout(x.values, ttnn.ROW_MAJOR_LAYOUT) if row_major else x.values,
            weight_tensor=self.weight,
            bias_tensor=self.bias,
            device=self.device,
            batch_size=1,
            input_height=x.height,
            input_width=x.width,
            dtype=ttnn.bfloat16,
            conv_config=ttnn.Conv2dConfig(
                output_layout=ttnn.ROW_MAJOR_LAYOUT if row_major else ttnn.TILE_LAYOUT,
                # Tables of where windows lie are kept for every size met; L1's reserve for them is full after two.
                config_tensors_in_dram=True,
            ),
            compute_config=self.compute_config,
            return_output_dim=True,
            return_weights_and_bias=True,
            **self.geometry,
        )
        self.prepared_for = (x.height, x.width)
        return FeatureMap(ttnn.to_layout(values, ttnn.TILE_LAYOUT) if row_major else values, height, width)


class GroupNorm:
    """torch.nn.GroupNorm, of a float32 map to another.

    Like a convolution's, its parameters are arranged for the size of the map at hand. Of the VAE's config it takes
    `norm_num_groups`.
    """

    def __init__(self, config, weights: Weights, name: str, channels: int):
        self.channels = channels
        self.groups = config.norm_num_groups
        self.weight = weights.torch(f"{name}.weight", (channels,))
        self.bias = weights.torch(f"{name}.bias", (channels,))
        self.device = weights.device
        self.norm_config = weights.norm_config
        self.prepared_for = None

    def __call__(self, x: FeatureMap) -> FeatureMap:
        size = x.height * x.width
        if self.prepared_for != size:
            self.grid = ttnn.determine_expected_group_norm_dram_grid_size(
                device=self.device, num_channels=self.channels, num_groups=self.groups, input_nhw=size
            )
            self.parameters, self.mask = ttnn.dram_group_norm_params_from_torch(
                [self.weight, self.bias],
                self.channels,
                self.groups,
                device=self.device,
                core_grid=self.grid,
                return_mask=True,
            )
            # A core works through its rows of tiles by blocks. TT-NN's own choice of them overflows L1 in float32.
            self.blocks = math.ceil(size / ttnn.TILE_SIZE / self.grid.y / _BLOCK_ROWS)
            self.prepared_for = size
        weight, bias = self.parameters
        values = ttnn.group_norm(
            x.values,
            num_groups=self.groups,
            epsilon=EPS,
            input_mask=self.mask,
            weight=weight,
            bias=bias,
            core_grid=self.grid,
            inplace=False,
            output_layout=ttnn.TILE_LAYOUT,
            num_out_blocks=self.blocks,
            compute_kernel_config=self.norm_config,
        )
        return x._replace(values=values)


def silu(x: FeatureMap) -> FeatureMap:
    """Of a float32 map, to a bfloat16 one in the same op."""
    activation = ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)
    return x._replace(values=ttnn.multiply(x.values, 1.0, activations=[activation], dtype=ttnn.bfloat16))


def add(a: FeatureMap, b: FeatureMap) -> FeatureMap:
    """To a float32 map."""
    return a._replace(values=ttnn.add(a.values, b.values, dtype=ttnn.float32))
