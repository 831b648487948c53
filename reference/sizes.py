"""Named sizes of FLUX.1 Kontext, smaller than the real one: keyword arguments of the four model configs."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Size:
    """What varies between checkpoints; all else is as in FLUX.1 Kontext.

    Attributes:
        clip: of CLIPTextConfig.
        t5: of T5Config.
        transformer: of FluxTransformer2DModel; the sum of axes_dims_rope is attention_head_dim.
        vae: of AutoencoderKL; every channel count is a multiple of norm_num_groups.
    """

    clip: dict
    t5: dict
    transformer: dict
    vae: dict


_TINY = Size(
    clip={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2},
    t5={"d_model": 96, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 3},
    transformer={
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "axes_dims_rope": (8, 28, 28),
        "guidance_embeds": True,
    },
    vae={"block_out_channels": (32, 64, 64, 96), "layers_per_block": 2, "norm_num_groups": 32},
)

SIZES = {
    "tiny": _TINY,
    # As FLUX.1 schnell: no guidance embedding.
    "tiny_schnell": replace(_TINY, transformer=_TINY.transformer | {"guidance_embeds": False}),
    # Widths that fill no 32 x 32 tile, as far as TT-NN has ops for them: heads and VAE channels must fill theirs.
    "odd": Size(
        clip={"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 3},
        t5={"d_model": 80, "d_kv": 32, "num_heads": 3, "d_ff": 120, "num_layers": 2},
        transformer={
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 3,
            "axes_dims_rope": (8, 12, 12),
            "guidance_embeds": True,
        },
        vae={"block_out_channels": (32, 64, 64, 96), "layers_per_block": 1, "norm_num_groups": 16},
    ),
}

TRAINED = Size(
    clip={"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    t5={"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2, "dropout_rate": 0.0},
    transformer={
        "num_layers": 2,
        "num_single_layers": 4,
        "attention_head_dim": 32,
        "num_attention_heads": 6,
        "axes_dims_rope": (8, 12, 12),
        "guidance_embeds": True,
    },
    vae={"block_out_channels": (32, 32, 64, 128), "layers_per_block": 1, "norm_num_groups": 32},
)
"""The size that the recipe trains."""
