"""The variational autoencoder (diffusers' AutoencoderKL): pictures to latents and back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import get_type_hints

import torch

from tt_flux_kontext import program_configs
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.checkpoint.files import check_fields
from tt_flux_kontext.models.feature_map import Conv2d, FeatureMap, add, clear, silu, to_bfloat16, to_float32
from tt_flux_kontext.models.from_host import FromHost
from tt_flux_kontext.models.group_norm import group_norm
from tt_flux_kontext.models.layers import Linear, merge_heads, split_heads
from tt_flux_kontext.models.rows import Rows
from tt_flux_kontext.models.weights import Weights


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Fields of the checkpoint's vae/config.json, with diffusers' names and defaults."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, config: dict) -> "VAEConfig":
        """Raises `CheckpointError` for a value that this VAE can't have on TT-NN."""
        others = {"down_block_types": tuple[str, ...], "up_block_types": tuple[str, ...], "act_fn": str}
        check_fields("vae/config.json", config, get_type_hints(cls) | others)
        fields = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        fields["block_out_channels"] = tuple(fields.get("block_out_channels", cls.block_out_channels))
        result = cls(**fields)
        for name, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            blocks = [known] * len(result.block_out_channels)
            if list(config.get(name, blocks)) != blocks:
                raise CheckpointError(
                    f"vae/config.json: {name} must be {known} for each of the {len(blocks)} block_out_channels, but is "
                    f"{', '.join(config[name])}."
                )
        if config.get("act_fn", "silu") != "silu":
            raise CheckpointError(f"vae/config.json: act_fn is {config['act_fn']}, where Flux has silu.")
        if {result.in_channels, result.out_channels} != {3}:
            raise CheckpointError("vae/config.json: in_channels and out_channels must be 3, for red, green and blue.")
        if result.scaling_factor == 0:
            raise CheckpointError("vae/config.json: scaling_factor is 0, by which latents are divided.")
        if any(channels % 32 or channels % result.norm_num_groups for channels in result.block_out_channels):
            raise CheckpointError(
                f"vae/config.json: block_out_channels {list(result.block_out_channels)} must be multiples of 32 and "
                f"of norm_num_groups ({result.norm_num_groups})."
            )
        return result

    @property
    def scale_factor(self) -> int:
        """Pixels along an edge of the picture for one latent."""
        return 2 ** (len(self.block_out_channels) - 1)


class ResnetBlock:
    """x + conv(silu(norm(conv(silu(norm(x)))))), x through a 1x1 convolution where channels change (ResnetBlock2D)."""

    def __init__(self, config: VAEConfig, weights: Weights, in_channels: int, out_channels: int):
        self.norm1 = group_norm(config, weights, "norm1", in_channels)
        self.conv1 = Conv2d(weights, "conv1", in_channels, out_channels)
        self.norm2 = group_norm(config, weights, "norm2", out_channels)
        self.conv2 = Conv2d(weights, "conv2", out_channels, out_channels)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = Conv2d(weights, "conv_shortcut", in_channels, out_channels, kernel=1, padding=(0, 0, 0, 0))

    def __call__(self, x: FeatureMap) -> FeatureMap:
        # Each map is dropped as soon as the next is there: at 1024 x 1024 one takes up to 1 GB.
        hidden = to_float32(self.conv1(silu(self.norm1(x))))
        hidden = self.norm2(hidden)
        hidden = self.conv2(silu(hidden))
        return add(self.shortcut(to_bfloat16(x)) if self.shortcut else x, hidden)


class AttentionBlock:
    """Self-attention of all positions, one head as wide as the channels, added to its input (diffusers' Attention)."""

    def __init__(self, config: VAEConfig, weights: Weights, channels: int):
        self.norm = group_norm(config, weights, "group_norm", channels)
        self.qkv = Linear(weights, "to_q", "to_k", "to_v", in_features=channels, out_features=channels)
        self.out = Linear(weights, "to_out.0", in_features=channels, out_features=channels)
        self.device = weights.device
        self.compute_config = weights.compute_config

    def __call__(self, x: FeatureMap) -> FeatureMap:
        # Convolutions leave anything in the padding of a map that fills no tiles. Attention, the only one here to mix
        # positions of a tile, gives padded keys no weight, but can't if their scores or values are infinite.
        normed = ttnn.fill_implicit_tile_padding(to_bfloat16(self.norm(x)).values, 0.0)
        query, key, value = split_heads(self.qkv(normed), heads=1)
        attention = ttnn.transformer.scaled_dot_product_attention(
            query,
            x.rows.gather(key),
            x.rows.gather(value),
            is_causal=False,
            program_config=program_configs.attention(self.device, query),
            compute_kernel_config=self.compute_config,
        )
        return add(x, x._replace(values=self.out(merge_heads(attention))))


class Downsample:
    """Half the size, by a strided convolution padded at the right and the bottom only (Downsample2D with padding 0)."""

    def __init__(self, weights: Weights, channels: int):
        self.conv = Conv2d(weights, "downsamplers.0.conv", channels, channels, stride=2, padding=(0, 1, 0, 1))

    def __call__(self, x: FeatureMap) -> FeatureMap:
        return to_float32(self.conv(to_bfloat16(x)))


class Upsample:
    """Twice the size, by repeating positions, then a convolution (Upsample2D)."""

    def __init__(self, weights: Weights, channels: int):
        self.channels = channels
        self.conv = Conv2d(weights, "upsamplers.0.conv", channels, channels)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        return to_float32(self.conv(self.repeat(to_bfloat16(x))))

    def repeat(self, x: FeatureMap) -> FeatureMap:
        """Each position two by two times, in row-major order."""
        height, width = 2 * x.height, 2 * x.width
        values = ttnn.to_layout(x.values, ttnn.ROW_MAJOR_LAYOUT)
        values = ttnn.upsample(ttnn.reshape(values, (1, x.height, x.width, self.channels)), 2)
        values = ttnn.reshape(values, (1, 1, height * width, self.channels))
        return FeatureMap(values, height, width, x.rows.resized(height))


def _mid_block(config: VAEConfig, weights: Weights, channels: int) -> list:
    """UNetMidBlock2D."""
    blocks = [ResnetBlock(config, weights.at("resnets.0"), channels, channels)]
    if config.mid_block_add_attention:
        blocks.append(AttentionBlock(config, weights.at("attentions.0"), channels))
    return [*blocks, ResnetBlock(config, weights.at("resnets.1"), channels, channels)]


class Encoder(FromHost):
    """A picture to packed latents."""

    def __init__(self, config: VAEConfig, weights: Weights):
        self.config = config
        self.device = weights.device
        self.rows = _rows(weights, 2 * config.scale_factor)
        encoder, widths = weights.at("encoder"), config.block_out_channels
        # Rows above and below come with the picture: three channels would be small change for a halo.
        conv_in = Conv2d(encoder, "conv_in", config.in_channels, widths[0], padding=(0, 0, 1, 1))
        self.blocks = [conv_in, to_float32]
        channels = widths[0]
        for level, width in enumerate(widths):
            block = encoder.at(f"down_blocks.{level}")
            for i in range(config.layers_per_block):
                self.blocks.append(ResnetBlock(config, block.at(f"resnets.{i}"), channels, width))
                channels = width
            if level < len(widths) - 1:
                self.blocks.append(Downsample(block, width))
        self.blocks += _mid_block(config, encoder.at("mid_block"), channels)
        moments = 2 * config.latent_channels
        self.blocks += [
            group_norm(config, encoder, "conv_norm_out", channels),
            silu,
            Conv2d(encoder, "conv_out", channels, moments),
        ]
        if config.use_quant_conv:
            self.blocks.append(Conv2d(weights, "quant_conv", moments, moments, kernel=1, padding=(0, 0, 0, 0)))

    def host_input(self, image: torch.Tensor) -> tuple["ttnn.Tensor", Rows]:
        """image: float [channels, height, width], -1 to 1.

        Returns it in bfloat16, as `Rows.on_host` has it with a row around, and the rows.
        """
        rows = self.rows(*image.shape[1:])
        return rows.on_host(image.permute(1, 2, 0), ttnn.bfloat16, tiled=False, around=1), rows

    def moments(self, image: "ttnn.Tensor", rows: Rows) -> FeatureMap:
        """Mean and log variance side by side. image: of `host_input`, on the device."""
        x = FeatureMap(image, rows.here + 2, rows.width, rows)
        for block in self.blocks:
            x = block(x)
        return x

    def on_device(self, image: "ttnn.Tensor", rows: Rows) -> FeatureMap:
        """The mode of the posterior, shifted and scaled for the transformer, packed: a map of tokens, of 4 C channels.

        `to_tokens` brings it to the host.
        """
        channels = self.config.latent_channels
        x = self.moments(image, rows)
        mean = ttnn.slice(x.values, [0, 0, 0, 0], [1, 1, x.height * x.width, channels])
        latents = ttnn.multiply(ttnn.subtract(mean, self.config.shift_factor or 0.0), self.config.scaling_factor)
        height, width = x.height // 2, x.width // 2
        return FeatureMap(pack(x._replace(values=latents), channels), height, width, x.rows.resized(height))


class Decoder(FromHost):
    """Packed latents to a picture."""

    def __init__(self, config: VAEConfig, weights: Weights):
        self.config = config
        self.device = weights.device
        self.rows = _rows(weights, 2)
        decoder, widths = weights.at("decoder"), config.block_out_channels[::-1]
        channels, latents = widths[0], config.latent_channels
        self.blocks = []
        if config.use_post_quant_conv:
            conv = Conv2d(weights, "post_quant_conv", latents, latents, kernel=1, padding=(0, 0, 0, 0))
            self.blocks += [conv, clear]
        self.blocks += [Conv2d(decoder, "conv_in", latents, channels), to_float32]
        self.blocks += _mid_block(config, decoder.at("mid_block"), channels)
        for level, width in enumerate(widths):
            block = decoder.at(f"up_blocks.{level}")
            for i in range(config.layers_per_block + 1):
                self.blocks.append(ResnetBlock(config, block.at(f"resnets.{i}"), channels, width))
                channels = width
            if level < len(widths) - 1:
                self.blocks.append(Upsample(block, width))
        self.blocks += [
            group_norm(config, decoder, "conv_norm_out", channels),
            silu,
            Conv2d(decoder, "conv_out", channels, config.out_channels),
        ]

    def decode(self, latents: FeatureMap) -> FeatureMap:
        """latents: bfloat16, as the encoder's mean. Returns a picture for `to_picture`."""
        x = latents
        for block in self.blocks:
            x = block(x)
        return x._replace(values=ttnn.to_layout(x.values, ttnn.ROW_MAJOR_LAYOUT))

    def host_input(self, latents: torch.Tensor, height: int, width: int) -> tuple["ttnn.Tensor", Rows]:
        """latents: float32 [tokens, 4 C] from the transformer, of a picture of height x width pixels.

        Returns them as `Rows.on_host` has tokens, float32 in tiles, and the rows of the map that they unpack to.
        """
        scale = self.config.scale_factor
        rows = self.rows(height // scale, width // scale)
        tokens = latents.view(rows.height // 2, rows.width // 2, -1)
        return rows.resized(rows.here // 2).on_host(tokens, ttnn.float32), rows

    def on_device(self, latents: "ttnn.Tensor", rows: Rows) -> FeatureMap:
        """latents: of `host_input`, on the device. Returns a picture; `to_picture` brings it to the host."""
        x = unpack(latents, rows.here, rows.width)
        values = ttnn.add(ttnn.multiply(x.values, 1 / self.config.scaling_factor), self.config.shift_factor or 0.0)
        return self.decode(to_bfloat16(x._replace(values=values, rows=rows)))


def _rows(weights: Weights, unit: int) -> Callable[[int, int], Rows]:
    """Of maps by (height, width), each chip's a multiple of `unit`. What they keep they keep for the last size."""
    return lru_cache(maxsize=1)(partial(Rows.of, weights.parallel, unit=unit))


def to_tokens(x: FeatureMap) -> torch.Tensor:
    """What the encoder made, once the device has: float32 [tokens, 4 C]."""
    return x.rows.fetch(x.values).flatten(0, 1)


def to_picture(x: FeatureMap) -> torch.Tensor:
    """What the decoder made, once the device has: float32 [channels, height, width], about -1 to 1."""
    return x.rows.fetch(x.values).permute(2, 0, 1)


def pack(x: FeatureMap, channels: int) -> "ttnn.Tensor":
    """Squares of 2 x 2 latents as tokens [1, 1, height width / 4, 4 channels], ordered (channel, row, column)."""
    rows, columns = x.height // 2, x.width // 2
    values = ttnn.to_layout(x.values, ttnn.ROW_MAJOR_LAYOUT)
    values = ttnn.permute(ttnn.reshape(values, (rows, 2, columns, 2, channels)), (0, 2, 4, 1, 3))
    values = ttnn.reshape(values, (1, 1, rows * columns, 4 * channels))
    return ttnn.to_layout(values, ttnn.TILE_LAYOUT)


def unpack(tokens: "ttnn.Tensor", height: int, width: int) -> FeatureMap:
    """The inverse of `pack`, to a map of height x width latents."""
    rows, columns, channels = height // 2, width // 2, tokens.shape[3] // 4
    values = ttnn.to_layout(tokens, ttnn.ROW_MAJOR_LAYOUT)
    values = ttnn.permute(ttnn.reshape(values, (rows, columns, channels, 2, 2)), (0, 3, 1, 4, 2))
    values = ttnn.reshape(values, (1, 1, height * width, channels))
    return FeatureMap(ttnn.to_layout(values, ttnn.TILE_LAYOUT), height, width)
