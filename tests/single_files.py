"""Files as Black Forest Labs and ComfyUI name their tensors, made of diffusers' models."""

import re

import torch

_EMBEDDERS = {"timestep": "time_in", "guidance": "guidance_in", "text": "vector_in"}
_NORMS = {"norm_q": "query_norm", "norm_k": "key_norm"}


def black_forest_labs(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A FluxTransformer2DModel's state dict with Black Forest Labs' names, in as many tensors as they have."""
    left, out = dict(tensors), {}

    def move(ours: str, theirs: str) -> None:
        for name in ("weight", "bias"):
            if f"{ours}.{name}" in left:
                out[f"{theirs}.{'scale' if theirs.endswith('_norm') else name}"] = left.pop(f"{ours}.{name}")

    def fuse(block: str, parts: tuple[str, ...], theirs: str) -> None:
        for name in ("weight", "bias"):
            out[f"{theirs}.{name}"] = torch.cat([left.pop(f"{block}.{part}.{name}") for part in parts])

    for name in ("weight", "bias"):
        scale, shift = left.pop(f"norm_out.linear.{name}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{name}"] = torch.cat([shift, scale])
    move("x_embedder", "img_in")
    move("context_embedder", "txt_in")
    move("proj_out", "final_layer.linear")
    for ours, theirs in _EMBEDDERS.items():
        move(f"time_text_embed.{ours}_embedder.linear_1", f"{theirs}.in_layer")
        move(f"time_text_embed.{ours}_embedder.linear_2", f"{theirs}.out_layer")
    for block in sorted({".".join(key.split(".")[:2]) for key in left}):
        kind, number = block.split(".")
        if kind == "transformer_blocks":
            theirs = f"double_blocks.{number}"
            fuse(block, ("attn.to_q", "attn.to_k", "attn.to_v"), f"{theirs}.img_attn.qkv")
            fuse(block, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), f"{theirs}.txt_attn.qkv")
            move(f"{block}.attn.to_out.0", f"{theirs}.img_attn.proj")
            move(f"{block}.attn.to_add_out", f"{theirs}.txt_attn.proj")
            for stream, suffix, added in (("img", "", ""), ("txt", "_context", "added_")):
                move(f"{block}.norm1{suffix}.linear", f"{theirs}.{stream}_mod.lin")
                move(f"{block}.ff{suffix}.net.0.proj", f"{theirs}.{stream}_mlp.0")
                move(f"{block}.ff{suffix}.net.2", f"{theirs}.{stream}_mlp.2")
                for ours, norm in _NORMS.items():
                    move(f"{block}.attn.{ours.replace('_', f'_{added}')}", f"{theirs}.{stream}_attn.norm.{norm}")
        else:
            theirs = f"single_blocks.{number}"
            fuse(block, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), f"{theirs}.linear1")
            move(f"{block}.proj_out", f"{theirs}.linear2")
            move(f"{block}.norm.linear", f"{theirs}.modulation.lin")
            for ours, norm in _NORMS.items():
                move(f"{block}.attn.{ours}", f"{theirs}.norm.{norm}")
    assert not left, sorted(left)
    return out


def latent_diffusion(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An AutoencoderKL's state dict with the names of latent diffusion, and convolutions in its attention."""
    levels = len({key.split(".")[2] for key in tensors if key.startswith("decoder.up_blocks.")})
    rules = (
        (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
        (r"\.up_blocks\.(\d+)\.resnets\.", lambda found: f".up.{levels - 1 - int(found[1])}.block."),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
        (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f".up.{levels - 1 - int(found[1])}.upsample."),
        (r"\.mid_block\.resnets\.(\d)\.", lambda found: f".mid.block_{int(found[1]) + 1}."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
        (r"\.group_norm\.", ".norm."),
        (r"\.to_out\.0\.", ".proj_out."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    )
    out = {}
    for key, tensor in tensors.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        out[key] = tensor[:, :, None, None] if ".attn_1." in key and tensor.ndim == 2 else tensor
    return out
