"""CLIP and T5 against transformers."""

import pytest
import torch

from reference.torch_models import bf16, in_bf16, models, weights
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models.clip import MASKED, CLIPLayer, CLIPTextEncoder
from tt_flux_kontext.models.t5 import T5Encoder, T5Layer
from tt_flux_kontext.models.weights import upload

SIZES = ["tiny", "real"]

pytestmark = pytest.mark.usefixtures("reset_seeds")


def host(x) -> torch.Tensor:
    return ttnn.to_torch(x).float()[0]


def token_ids(vocabulary: int, tokens: int, end: int) -> torch.Tensor:
    """Random ids with the highest one, CLIP's end of text, at `end`."""
    ids = torch.randint(3, vocabulary - 1, (tokens,))
    ids[end] = vocabulary - 1
    return ids


@pytest.mark.parametrize("size", SIZES)
def test_clip_layer(mesh_device, check_accuracy, size):
    model = models(size)["text_encoder"]
    layer, tokens = model.encoder.layers[0], 77
    x = bf16(torch.randn(1, tokens, model.config.hidden_size))
    mask = torch.full((1, 1, tokens, tokens), MASKED).triu(diagonal=1)
    ours = CLIPLayer(model.config, weights(model, mesh_device).at("encoder.layers.0"))
    out = host(ours(upload(x[None], mesh_device, ttnn.float32), upload(mask, mesh_device, ttnn.float32)))
    reference32 = layer(x, mask)
    reference16 = in_bf16(layer)(x.bfloat16(), mask.bfloat16())
    check_accuracy(f"CLIP layer, {size}", out, reference32, reference16)


@pytest.mark.parametrize("size", SIZES)
def test_clip(mesh_device, check_accuracy, size):
    model = models(size)["text_encoder"]
    prompts = torch.stack([token_ids(model.config.vocab_size, tokens=77, end=end) for end in (5, 20, 41, 70)])
    encoder = CLIPTextEncoder(model.config, weights(model, mesh_device))
    out = torch.cat([host(encoder(ids))[0] for ids in prompts])
    reference32, reference16 = model(prompts).pooler_output, in_bf16(model)(prompts).pooler_output
    check_accuracy(f"CLIP, pooled, {size}", out, reference32, reference16)


@pytest.mark.parametrize("size", SIZES)
def test_t5_layer(mesh_device, check_accuracy, size):
    model = models(size)["text_encoder_2"]
    block, tokens = model.encoder.block[0], 45
    x = bf16(torch.randn(1, tokens, model.config.d_model))
    encoder = T5Encoder(model.config, weights(model, mesh_device))
    ours = T5Layer(model.config, weights(model, mesh_device).at("encoder.block.0"))
    out = host(ours(upload(x[None], mesh_device, ttnn.bfloat16), encoder.position_bias(encoder.buckets(tokens))))
    reference32, reference16 = block(x)[0], in_bf16(block)(x.bfloat16())[0]
    check_accuracy(f"T5 layer, {size}", out, reference32, reference16)


@pytest.mark.parametrize("size,tokens", [("tiny", 512), ("tiny", 45), ("real", 77)])
def test_t5(mesh_device, check_accuracy, size, tokens):
    model = models(size)["text_encoder_2"]
    ids = token_ids(model.config.vocab_size, tokens, end=9)
    out = host(T5Encoder(model.config, weights(model, mesh_device))(ids))
    reference32, reference16 = model(ids[None])[0], in_bf16(model)(ids[None])[0]
    layers = f"{model.config.num_layers} layers, " if size == "real" else ""
    check_accuracy(f"T5, {layers}{tokens} tokens, {size}", out, reference32, reference16)
