"""torch's side of comparisons by module: models with random weights, tiny or of the real widths, and their tensors."""

import copy
from functools import cache

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.initialization import no_init_weights

from reference.make_checkpoint import build_models, randomize
from reference.sizes import SIZES
from reference.state_dict import StateDict
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.weights import Weights
from tt_flux_kontext.precision import FULL


def weights(module: torch.nn.Module, device, parallel: Parallel | None = None) -> Weights:
    """By default whole on each chip."""
    return Weights(StateDict(module.state_dict()), FULL, parallel or Parallel(Mesh(device)))


def in_bf16(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that computes in bfloat16."""
    return copy.deepcopy(module).bfloat16()


def bf16(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the values of bfloat16, so that all that are compared start from the same numbers."""
    return x.bfloat16().float()


@cache
def models(size: str) -> dict[str, torch.nn.Module]:
    """The four models in float32, with gradients off: all of a tiny Flux, or few layers of the real widths."""
    built = build_models(SIZES["tiny"], clip_vocabulary=640, t5_vocabulary=640) if size == "tiny" else _real_widths()
    for seed, model in enumerate(built.values()):
        randomize(model.requires_grad_(False).eval(), seed=seed)
    return built


@no_init_weights()
def _real_widths() -> dict[str, torch.nn.Module]:
    """One double and one single block, one T5 layer, all of CLIP-L and of the VAE; weights are yet to be given."""
    clip = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, eos_token_id=2
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=640,
            d_model=4096,
            d_kv=64,
            num_heads=64,
            d_ff=10240,
            num_layers=1,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
    t5.tie_weights()  # which is a part of the initialisation
    return {
        "text_encoder": CLIPTextModel(clip),
        "text_encoder_2": t5,
        "transformer": FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    }
