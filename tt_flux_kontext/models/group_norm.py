"""Group norm of the VAE's maps."""

import math
from functools import cached_property

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.feature_map import FeatureMap
from tt_flux_kontext.models.weights import Weights, upload

EPS = 1e-6
_BLOCK_ROWS = 16  # of tiles: 0.5 MB of a core's L1, twice that where a group straddles tiles
_PARTS = 32  # of a map, for statistics: with all of its tile columns more than a chip has cores


def group_norm(config, weights: Weights, name: str, channels: int) -> "GroupNorm | SplitGroupNorm":
    """torch.nn.GroupNorm, of a float32 map to another. Of the VAE's config it takes `norm_num_groups`."""
    kind = GroupNorm if weights.parallel.sp == 1 else SplitGroupNorm
    return kind(config, weights, name, channels)


class GroupNorm:
    """Of a map that a chip has whole: TT-NN's own.

    Like a convolution's, its parameters are arranged for the size of the map at hand.
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
            # As bfloat16 from the host: the device would make them that in three operations each.
            self.parameters, self.mask = ttnn.dram_group_norm_params_from_torch(
                [self.weight.bfloat16(), self.bias.bfloat16()],
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


class SplitGroupNorm:
    """Of a map whose rows are split over chips.

    TT-NN has an op for that too (`dit_fused_distributed_groupnorm`), but for bfloat16 only, and not for chips whose
    positions fill no tiles. Here each chip takes the mean and the variance of each channel, which the vector unit sums
    in float32, in a few parts of its rows so that all cores take part. All chips get all of these, and join them.
    """

    def __init__(self, config, weights: Weights, name: str, channels: int):
        self.channels = channels
        self.size = channels // config.norm_num_groups
        self.weight = weights.row([f"{name}.weight"], channels, dtype="float32")
        self.bias = weights.row([f"{name}.bias"], channels, dtype="float32")
        self.parallel = weights.parallel
        self.norm_config = weights.norm_config

    def __call__(self, x: FeatureMap) -> FeatureMap:
        means, variances = self._of_parts(x, ttnn.mean), self._of_parts(x, ttnn.var, correction=False)
        fill = x.rows.all / x.rows.height
        mean = self._joined(means, fill)
        difference = ttnn.subtract(means, mean)
        variance = self._joined(ttnn.addcmul(variances, difference, difference), fill)
        if x.rows.padded:  # its zeros were counted: each lies as far from the mean as that from zero
            variance = ttnn.addcmul(variance, mean, mean, value=1 - fill)
        inverse = ttnn.add(variance, EPS, activations=[ttnn.UnaryWithParam(ttnn.UnaryOpType.RSQRT)])
        scale = ttnn.multiply(inverse, self.weight)
        shift = ttnn.addcmul(self.bias, mean, scale, value=-1.0)
        return x._replace(values=ttnn.addcmul(shift, x.values, scale))

    def _of_parts(self, x: FeatureMap, moment, **arguments) -> "ttnn.Tensor":
        """A moment of each channel in all parts of all chips, [1, 1, parts, channels]. `arguments`: of its op."""
        positions = x.height * x.width
        tiles, rest = divmod(positions, ttnn.TILE_SIZE)
        parts = 1 if rest else math.gcd(tiles, _PARTS)  # where they are whole tiles, which no op has to rearrange
        values = ttnn.reshape(x.values, (1, parts, positions // parts, self.channels))
        moments = moment(values, dim=2, keepdim=True, compute_kernel_config=self.norm_config, **arguments)
        moments = ttnn.reshape(moments, (1, 1, parts, self.channels))  # fewer tiles to send
        moments = self.parallel.all_gather_rows(moments, dim=1)
        return ttnn.reshape(moments, (1, 1, self.parallel.sp * parts, self.channels))

    def _joined(self, moments: "ttnn.Tensor", fill: float) -> "ttnn.Tensor":
        """The mean over all parts, times `fill`, and over the channels of a group: [1, 1, 1, channels]."""
        of_channels = ttnn.mean(
            moments, dim=2, keepdim=True, scalar=fill / self.size, compute_kernel_config=self.norm_config
        )
        return ttnn.matmul(of_channels, self.same_group, dtype=ttnn.float32, compute_kernel_config=self.norm_config)

    @cached_property
    def same_group(self) -> "ttnn.Tensor":
        """[channels, channels] of 1 where two channels are of one group, else 0."""
        group = torch.arange(self.channels) // self.size
        return upload((group[:, None] == group).float(), self.parallel.device, ttnn.bfloat16)
