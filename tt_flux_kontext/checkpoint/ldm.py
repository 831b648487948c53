"""The VAE's modules in files with the names of latent diffusion's code, as Black Forest Labs' `ae.safetensors`.

diffusers' converter from it is `convert_ldm_vae_checkpoint`.
"""

_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def modules(levels: int, layers: int) -> dict[str, str]:
    """By module of diffusers' AutoencoderKL, the one in such a file; some of them a VAE may not have.

    Args:
        levels: sizes of maps.
        layers: residual blocks a level of the decoder, which has one more than the encoder.
    """
    found = {name: name for name in ("quant_conv", "post_quant_conv")}
    for half, way in (("encoder", "down"), ("decoder", "up")):
        names = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
        names |= {f"mid_block.attentions.0.{ours}": f"mid.attn_1.{theirs}" for ours, theirs in _ATTENTION.items()}
        blocks = {f"mid_block.resnets.{i}": f"mid.block_{i + 1}" for i in range(2)}
        for level in range(levels):
            # Theirs count from the largest map on, diffusers' in the order in which they run.
            theirs = f"{way}.{level if way == 'down' else levels - 1 - level}"
            names[f"{way}_blocks.{level}.{way}samplers.0.conv"] = f"{theirs}.{way}sample.conv"
            blocks |= {f"{way}_blocks.{level}.resnets.{i}": f"{theirs}.block.{i}" for i in range(layers)}
        for block, theirs in blocks.items():
            names |= {f"{block}.{name}": f"{theirs}.{other}" for name, other in _RESNET.items()}
        found |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in names.items()}
    return found
