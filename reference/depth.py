"""Errors of every model at the real size, and how they grow from block to block: against torch, from the same files.

    python -m reference.depth CHECKPOINT [--precision bf16 bfp8] [--side 256]

torch's T5 and transformer, in float32 and in bfloat16, have each layer's weights only while that layer computes, so
that 12 B parameters run in the memory of the largest matrix. Ours are whole, on the emulated device.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from tt_flux_kontext import open_device
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import Checkpoint, Tensors
from tt_flux_kontext.models.transformer import Positions
from tt_flux_kontext.models.vae import to_picture, to_tokens
from tt_flux_kontext.models.weights import upload
from tt_flux_kontext.precision import PRECISIONS
from tt_flux_kontext.residency import Models
from tt_flux_kontext.resolution import image_ids, pack_latents

from .accuracy import Accuracy, table
from .pipeline import quiet

DEPTHS = (1, 5, 10, 19, 57)
"""Blocks after which the states are compared, counted from 1; 20 and on are single blocks."""
TEXT_TOKENS = 512
PICTURE = 64  # pixels along an edge, for the VAE: in bfloat16 torch takes a minute for it
TIME, GUIDANCE = 0.5, 2.0  # which bfloat16 holds, also times 1000

States = dict[str, torch.Tensor]
"""By name: hidden states [tokens, features] after some blocks, and outputs; float32."""


@dataclass(frozen=True)
class Inputs:
    """What the models get, each its own: none sees what another made.

    Attributes:
        clip_ids, ids: of CLIP's and T5's tokens, int64 [77] and [T].
        picture: for the VAE's encoder, [3, PICTURE, PICTURE] in -1 ... 1.
        latents, reference: packed, [side * side, C]; the VAE's decoder gets the first of `latents`.
        context, pooled: for the transformer, [T, J] and [P].
        side: tokens along an edge of the noise and of the reference.
    """

    clip_ids: torch.Tensor
    ids: torch.Tensor
    picture: torch.Tensor
    latents: torch.Tensor
    reference: torch.Tensor
    context: torch.Tensor
    pooled: torch.Tensor
    side: int

    @classmethod
    def random(cls, checkpoint: Checkpoint, tokens: int, side: int) -> "Inputs":
        """Random tokens, and normal numbers of bfloat16."""
        clip = checkpoint.config("text_encoder", "CLIPTextModel")
        flux = checkpoint.config("transformer", "FluxTransformer2DModel")
        t5 = checkpoint.config("text_encoder_2", "T5EncoderModel")
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).bfloat16().float()

        clip_ids = torch.randint(clip["vocab_size"] - 1, (77,), generator=generator)
        clip_ids[20] = clip["vocab_size"] - 1  # the end of the text
        return cls(
            clip_ids,
            torch.randint(t5["vocab_size"], (tokens,), generator=generator),
            normal(3, PICTURE, PICTURE).clamp(-1, 1),
            normal(side**2, flux["in_channels"]),
            normal(side**2, flux["in_channels"]),
            normal(tokens, flux["joint_attention_dim"]),
            normal(flux["pooled_projection_dim"]),
            side,
        )

    @property
    def first_latents(self) -> torch.Tensor:
        """Of a picture of PICTURE x PICTURE: [tokens, C]."""
        return self.latents[: (PICTURE // 16) ** 2]

    @property
    def image_ids(self) -> torch.Tensor:
        return torch.cat([image_ids(self.side, self.side, index) for index in (0, 1)])


def errors(
    checkpoint: Checkpoint, device, precisions: Sequence[str], inputs: Inputs, depths: Sequence[int]
) -> dict[str, list[Accuracy]]:
    """By precision: of every model, of T5 and the transformer also after some blocks.

    Args:
        device: an open one, with room for the transformer.
        precisions: names in `PRECISIONS`.
        depths: counted from 1; those that a model has not are left out.
    """
    ours = {
        name: our_t5(checkpoint, device, name, inputs, depths)
        | our_transformer(checkpoint, device, name, inputs, depths)
        | our_clip_and_vae(checkpoint, device, name, inputs)
        for name in precisions
    }
    float32, bfloat16 = (
        torch_t5(checkpoint, dtype, inputs, depths)
        | torch_transformer(checkpoint, dtype, inputs, depths)
        | torch_clip_and_vae(checkpoint, dtype, inputs)
        for dtype in (torch.float32, torch.bfloat16)
    )
    return {
        precision: [Accuracy.of(name, states[name], exact, bfloat16[name]) for name, exact in float32.items()]
        for precision, states in ours.items()
    }


def our_clip_and_vae(checkpoint: Checkpoint, device, precision: str, inputs: Inputs) -> States:
    """CLIP's pooled state, the packed latents of the picture, the picture of the first latents."""
    models = Models(checkpoint, device, PRECISIONS[precision])
    return {
        "CLIP, pooled": _host(models["clip"](inputs.clip_ids)),
        "VAE encoder": to_tokens(models["vae encoder"](inputs.picture)),
        "VAE decoder": to_picture(models["vae decoder"](inputs.first_latents, PICTURE, PICTURE)),
    }


def our_t5(checkpoint: Checkpoint, device, precision: str, inputs: Inputs, depths: Sequence[int]) -> States:
    """After some layers, and the last hidden state."""
    model = Models(checkpoint, device, PRECISIONS[precision])["t5"]
    states: States = {}
    model.layers = _recorded(model.layers, "T5 layer", depths, states)
    states["T5"] = _host(model(inputs.ids))
    return states


def our_transformer(checkpoint: Checkpoint, device, precision: str, inputs: Inputs, depths: Sequence[int]) -> States:
    """The first block's modulation, after some blocks (of double ones the image's rows), the velocity, at one time."""
    models = Models(checkpoint, device, PRECISIONS[precision])
    guidance = GUIDANCE if models.transformer_config.guidance_embeds else None
    pooled = upload(inputs.pooled[None, None, None], device, ttnn.bfloat16)
    table = models["modulation"]([TIME], guidance, pooled)
    models.release("modulation")
    model = models["transformer"]
    first = table.step().double[0][0].attention
    states: States = {"modulation": torch.cat([_host(x) for x in (first.shift, first.scale, first.gate)])}
    model.double_blocks = _recorded(model.double_blocks, "block", depths, states)
    model.single_blocks = _recorded(model.single_blocks, "block", depths, states, len(model.double_blocks))
    parallel = models.parallel["transformer"]
    image, context = torch.cat([inputs.latents, inputs.reference]), inputs.context
    positions = Positions.of(inputs.image_ids, len(context), models.transformer_config, parallel)
    placed = (parallel.scatter(x, ttnn.bfloat16) for x in (image, context))
    velocity = _host(model(*placed, positions, table.step()))
    states["velocity"] = velocity[: len(inputs.latents)]
    return states


@torch.no_grad()
def torch_t5(checkpoint: Checkpoint, dtype: torch.dtype, inputs: Inputs, depths: Sequence[int]) -> States:
    """As `our_t5`, by transformers' T5EncoderModel."""
    with torch.device("meta"):
        model = T5EncoderModel(T5Config.from_dict(checkpoint.config("text_encoder_2", "T5EncoderModel")))
    states: States = {}
    _hook(model.encoder.block, "T5 layer", depths, states, lambda out: out[0])
    _stream(model.to(dtype), checkpoint.tensors("text_encoder_2"), dtype)
    states["T5"] = model(inputs.ids[None])[0][0].float()
    return states


@torch.no_grad()
def torch_transformer(checkpoint: Checkpoint, dtype: torch.dtype, inputs: Inputs, depths: Sequence[int]) -> States:
    """As `our_transformer`, by diffusers' FluxTransformer2DModel."""
    config = checkpoint.config("transformer", "FluxTransformer2DModel")
    with torch.device("meta"), quiet():
        model = FluxTransformer2DModel.from_config(config).to(dtype)
    states: States = {}

    def keep_modulation(_module, _args, out: torch.Tensor) -> None:
        shift, scale, gate = out[0].float().chunk(6)[:3]
        states["modulation"] = torch.stack([shift, 1 + scale, gate])

    model.transformer_blocks[0].norm1.linear.register_forward_hook(keep_modulation)
    _hook(model.transformer_blocks, "block", depths, states, lambda out: out[1])
    doubles = len(model.transformer_blocks)
    _hook(model.single_transformer_blocks, "block", depths, states, lambda out: torch.cat(out, 1), doubles)
    _stream(model, checkpoint.tensors("transformer"), dtype)
    (velocity,) = model(
        hidden_states=torch.cat([inputs.latents, inputs.reference])[None].to(dtype),
        encoder_hidden_states=inputs.context[None].to(dtype),
        pooled_projections=inputs.pooled[None].to(dtype),
        timestep=torch.tensor([TIME]),
        guidance=torch.tensor([GUIDANCE]) if config["guidance_embeds"] else None,
        txt_ids=torch.zeros(len(inputs.context), 3),
        img_ids=inputs.image_ids,
        return_dict=False,
    )
    states["velocity"] = velocity[0, : len(inputs.latents)].float()
    return states


@torch.no_grad()
def torch_clip_and_vae(checkpoint: Checkpoint, dtype: torch.dtype, inputs: Inputs) -> States:
    """As `our_clip_and_vae`, by transformers' CLIPTextModel and diffusers' AutoencoderKL."""
    with quiet():
        clip = CLIPTextModel.from_pretrained(checkpoint.folder / "text_encoder", dtype=dtype)
        vae = AutoencoderKL.from_pretrained(checkpoint.folder / "vae", torch_dtype=dtype)
    mode = vae.encode(inputs.picture[None].to(dtype)).latent_dist.mode()
    latents = FluxKontextPipeline._unpack_latents(inputs.first_latents[None].to(dtype), PICTURE, PICTURE, 8)
    picture = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    return {
        "CLIP, pooled": clip(inputs.clip_ids[None]).pooler_output.float(),
        "VAE encoder": pack_latents((mode - vae.config.shift_factor) * vae.config.scaling_factor)[0].float(),
        "VAE decoder": picture[0].float(),
    }


def _stream(model: torch.nn.Module, tensors: Tensors, dtype: torch.dtype) -> None:
    """Gives each layer of a model on the meta device its weights while it computes."""

    def stream(name: str, module: torch.nn.Module, absent: dict[str, torch.nn.Parameter]) -> None:
        def load(*_):
            for key in absent:
                full = "shared.weight" if name == "encoder.embed_tokens" else f"{name}.{key}"  # T5's are tied
                module._parameters[key] = torch.nn.Parameter(tensors.read(full).to(dtype), requires_grad=False)

        module.register_forward_pre_hook(load)
        module.register_forward_hook(lambda *_: module._parameters.update(absent))

    for name, module in model.eval().named_modules():
        absent = {key: parameter for key, parameter in module._parameters.items() if parameter is not None}
        if absent:
            stream(name, module, absent)


def _hook(blocks, name: str, depths: Sequence[int], states: States, pick: Callable, before: int = 0) -> None:
    """Records what blocks give; `before` blocks came before them."""
    for depth, block in enumerate(blocks, before + 1):
        if depth in depths:
            block.register_forward_hook(
                lambda _module, _args, out, key=f"{name} {depth}": states.update({key: pick(out)[0].float()})
            )


def _recorded(blocks: Sequence[Callable], name: str, depths: Sequence[int], states: States, before: int = 0) -> list:
    """The same of our blocks; of a double block the image, as with diffusers'."""

    def recording(block: Callable, key: str) -> Callable:
        def call(*args):
            out = block(*args)
            states[key] = _host(out[0] if isinstance(out, tuple) else out)
            return out

        return call

    return [
        recording(block, f"{name} {depth}") if depth in depths else block
        for depth, block in enumerate(blocks, before + 1)
    ]


def _host(x: "ttnn.Tensor") -> torch.Tensor:
    return ttnn.to_torch(x)[0, 0].float()


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of the models, by depth.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["bf16"])
    parser.add_argument("--side", type=int, default=256, help="pixels of the result and the reference (%(default)s)")
    parser.add_argument("--device", default="emulated:p150")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(arguments.checkpoint)
    inputs = Inputs.random(checkpoint, TEXT_TOKENS, arguments.side // 16)
    with open_device(arguments.device) as device:
        for precision, found in errors(checkpoint, device, arguments.precision, inputs, DEPTHS).items():
            print(f"{precision}\n{table(found)}")


if __name__ == "__main__":
    main()
