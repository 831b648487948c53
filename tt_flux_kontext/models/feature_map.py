"""Maps of features, as the VAE's layers pass them on, and layers: convolution, SiLU, sum.

Between blocks a map is float32, since TT-NN's group norm takes its statistics in the format of the map, and in bfloat16
they are 0.5 % off and more. Convolutions take and give bfloat16.
"""

from typing import NamedTuple

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.rows import WHOLE, Rows
from tt_flux_kontext.models.slices import Conv, cut
from tt_flux_kontext.models.weights import Weights


class FeatureMap(NamedTuple):
    """A map of height x width positions, or a chip's `rows` of one: values [1, 1, height width, channels]."""

    values: "ttnn.Tensor"
    height: int
    width: int
    rows: Rows = WHOLE


def to_float32(x: FeatureMap) -> FeatureMap:
    """With zeros in padding."""
    return x._replace(values=x.rows.cleared(x.values, ttnn.float32))


def to_bfloat16(x: FeatureMap) -> FeatureMap:
    """With zeros in padding."""
    return x._replace(values=x.rows.cleared(x.values, ttnn.bfloat16))


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
        }
        self.padding = padding
        self.device = weights.device
        self.compute_config = weights.compute_config
        self.prepared_for = None

    def __call__(self, x: FeatureMap) -> FeatureMap:
        rows = x.rows
        x, padding = self._between_neighbours(x)
        # Rows of positions that fill no tiles: TT-NN would cut them out of tiles with index tables as large as the map,
        # and keep those. From row-major order it need not.
        row_major = x.width % ttnn.TILE_SIZE != 0
        if self.prepared_for != (x.height, x.width):
            self.prepared_for = None
            self.weight, self.bias = self.host_weight, self.host_bias
            self.blocks, self.slices = self._cut(x, padding, tiled=not row_major)
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
                **self.blocks,
            ),
            slice_config=self.slices,
            compute_config=self.compute_config,
            return_output_dim=True,
            return_weights_and_bias=True,
            padding=padding,
            **self.geometry,
        )
        self.prepared_for = (x.height, x.width)
        values = ttnn.to_layout(values, ttnn.TILE_LAYOUT) if row_major else values
        return FeatureMap(values, height, width, rows.resized(height))

    def _cut(self, x: FeatureMap, padding: tuple[int, int, int, int], tiled: bool) -> tuple[dict, object]:
        """Fields of the config and a config of slices; none where TT-NN needs no help."""
        kernel, stride = self.geometry["kernel_size"][0], self.geometry["stride"][0]
        top, bottom, left, right = padding
        size = ((x.height + top + bottom - kernel) // stride + 1, (x.width + left + right - kernel) // stride + 1)
        conv = Conv(self.geometry["in_channels"], self.geometry["out_channels"], kernel, stride, size, tiled)
        best = cut(conv, self.device.compute_with_storage_grid_size())
        if best is None:
            return {}, None
        layouts = ttnn.TensorMemoryLayout
        blocks = {
            "shard_layout": layouts.BLOCK_SHARDED if best.by_channels else layouts.HEIGHT_SHARDED,
            "act_block_h_override": best.block,
        }
        return blocks, ttnn.Conv2dSliceConfig(slice_type=ttnn.Conv2dDRAMSliceWidth, num_slices=best.slices)

    def _between_neighbours(self, x: FeatureMap) -> tuple[FeatureMap, tuple[int, int, int, int]]:
        """Where chips have different rows: with rows of other chips instead of padding. Returns what is left of it."""
        above, below, *sides = self.padding
        if x.rows.parallel.sp == 1 or not above + below:
            return x, self.padding
        channels, height = self.geometry["in_channels"], above + x.height + below
        values = ttnn.reshape(ttnn.to_layout(x.values, ttnn.ROW_MAJOR_LAYOUT), (1, x.height, x.width, channels))
        values = ttnn.reshape(x.rows.parallel.halo(values, above, below), (1, 1, height * x.width, channels))
        return x._replace(values=values, height=height), (0, 0, *sides)


def silu(x: FeatureMap) -> FeatureMap:
    """Of a float32 map, to a bfloat16 one in the same op, with zeros in padding."""
    activation = ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)
    return x._replace(values=ttnn.multiply(x.values, x.rows.mask, activations=[activation], dtype=ttnn.bfloat16))


def add(a: FeatureMap, b: FeatureMap) -> FeatureMap:
    """To a float32 map, with zeros in padding."""
    return clear(a._replace(values=ttnn.add(a.values, b.values, dtype=ttnn.float32)))


def clear(x: FeatureMap) -> FeatureMap:
    """With zeros in padding."""
    return x._replace(values=x.rows.cleared(x.values))
