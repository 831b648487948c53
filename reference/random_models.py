"""The four models of FLUX.1 Kontext with random weights: as modules, or as shapes and one parameter at a time."""

import hashlib
import math
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .sizes import Size
from .tokenizers import CLIP_LENGTH

Models = dict[str, torch.nn.Module]
"""The four models by component name: text_encoder, text_encoder_2, transformer, vae."""

# What every size has in common; the classes' defaults are FLUX's elsewhere.
_COMMON = {
    "text_encoder": {
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "text_encoder_2": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "is_encoder_decoder": True},
    "transformer": {"in_channels": 64},
    "vae": {
        "latent_channels": 16,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}

_PIECE = 2**20  # elements drawn at once: they stay in the cache; the values depend on it


def build_models(size: Size, clip_vocabulary: int, t5_vocabulary: int) -> Models:
    """The four models of a size, with their classes' own initial weights, in float32."""
    pooled, joint = size.clip["hidden_size"], size.t5["d_model"]
    levels = len(size.vae["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return _models(
        {
            "text_encoder": {"vocab_size": clip_vocabulary, "projection_dim": pooled} | size.clip,
            "text_encoder_2": {"vocab_size": 32 * math.ceil(t5_vocabulary / 32)} | size.t5,
            "transformer": {"pooled_projection_dim": pooled, "joint_attention_dim": joint} | size.transformer,
            "vae": blocks | size.vae,
        }
    )


def full_models() -> Models:
    """The models of FLUX.1 Kontext [dev] on the meta device: shapes without values."""
    # Imported here because it brings the whole package with it, which the small sizes don't need.
    from tt_flux_kontext.planner.kontext_dev import CONFIGS

    with torch.device("meta"):
        return _models(CONFIGS | {"text_encoder": {"projection_dim": 768} | CONFIGS["text_encoder"]})


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Fills every parameter so that activations stay near 1: see `_law`.

    The values are those of bfloat16, in which checkpoints come, whatever the model's dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        pieces = _normal(generator, *_law(name, parameter.shape, model.config), parameter.numel())
        for target, piece in zip(parameter.view(-1).split(_PIECE), pieces, strict=True):
            target.copy_(piece)


def random_values(
    seed: int, component: str, config: object, key: str, shape: tuple[int, ...]
) -> Iterator[torch.Tensor]:
    """A parameter's values in bfloat16, flat and in pieces, by a generator that knows the seed and its name alone."""
    digest = hashlib.sha256(f"{seed}/{component}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    yield from _normal(generator, *_law(key, shape, config), math.prod(shape))


def _normal(generator: torch.Generator, mean: float, deviation: float, count: int) -> Iterator[torch.Tensor]:
    """`count` numbers in bfloat16, in pieces."""
    buffer = torch.empty(min(count, _PIECE))
    for begin in range(0, count, _PIECE):
        yield buffer[: count - begin].normal_(mean, deviation, generator=generator).bfloat16()


def _models(configs: dict[str, dict]) -> Models:
    """The four models of config.json's fields, by component."""
    configs = {name: _COMMON[name] | config for name, config in configs.items()}
    models = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        "text_encoder_2": T5EncoderModel(T5Config(**configs["text_encoder_2"])),
        "transformer": FluxTransformer2DModel.from_config(configs["transformer"]),
        "vae": AutoencoderKL.from_config(configs["vae"]),
    }
    return {name: model.eval() for name, model in models.items()}


def _law(name: str, shape: tuple[int, ...], config: object) -> tuple[float, float]:
    """Mean and standard deviation of a parameter: norms around 1, biases around 0, weights by what they add up."""
    if name.endswith("bias"):
        return 0.0, 0.2
    if len(shape) == 1:
        return 1.0, 0.3
    if "embedding" in name and "embedder" not in name or "shared" in name or "relative_attention_bias" in name:
        return 0.0, 1.0
    fan_in = math.prod(shape[1:])
    if name.endswith("SelfAttention.q.weight"):  # T5 does not divide its logits by sqrt(d_kv)
        fan_in *= config.d_kv
    if len(shape) == 4:  # a SiLU halves what it lets through
        return 0.0, math.sqrt(2 / fan_in)
    return 0.0, math.sqrt(1 / fan_in)
