"""Time of the emulator against diffusers and transformers on the same CPU, in one run, at the real widths: a double and
a single block of the transformer, CLIP-L, one layer of T5-XXL, the VAE.

python -m reference.benchmark [--tokens 1024] [--json FILE]

torch runs in bfloat16, the checkpoint's format, and in float32: CPUs without bfloat16 units are far quicker in that,
above all at the VAE's convolutions.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from reference.torch_models import in_bf16, models, weights
from tt_flux_kontext.backend import choose, ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.clip import CLIPTextEncoder
from tt_flux_kontext.models.modulation import Modulation
from tt_flux_kontext.models.t5 import T5Encoder
from tt_flux_kontext.models.transformer import Positions, Transformer, TransformerConfig
from tt_flux_kontext.models.vae import Decoder, Encoder, VAEConfig, to_picture, to_tokens
from tt_flux_kontext.models.weights import upload
from tt_flux_kontext.resolution import image_ids, pack_latents

CLIP_TOKENS = 77
CONTEXT = 512  # text tokens of a block
LONG = 10.0  # seconds after which work is not repeated
Work = dict[str, Callable]  # by stage


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--tokens", type=int, default=1024, help="a block's, text and image (default: %(default)s)")
    parser.add_argument("--t5-tokens", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--pixels", type=int, default=128, help="along an edge, of the VAE (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    if arguments.tokens <= CONTEXT:
        parser.error(f"--tokens must be more than the {CONTEXT} of the text, not {arguments.tokens}")
    choose("emulated")
    rows = []
    print(f"{'':<14}{'emulated':>10}{'torch bf16':>13}{'ratio':>8}{'torch float32':>16}{'ratio':>8}")
    with open_device("emulated:p150") as device, torch.no_grad():
        for works in (
            _blocks(device, arguments.tokens),
            _encoder(device, "CLIP-L", "text_encoder", CLIPTextEncoder, CLIP_TOKENS),
            _encoder(device, "T5-XXL layer", "text_encoder_2", T5Encoder, arguments.t5_tokens),
            _vae(device, arguments.pixels),
        ):
            for name in works[0]:
                ours, bf16, float32 = (_best(work[name], arguments.rounds, name) for work in works)
                line = f"{name:<14}{ours:>9.3f}s{bf16:>12.3f}s{ours / bf16:>8.2f}"
                print(f"{line}{float32:>15.3f}s{ours / float32:>8.2f}", flush=True)
                rows.append(
                    {
                        "stage": name,
                        "kind": "emulated",
                        "seconds": ours,
                        "torch bf16": {"seconds": bf16, "ratio": ours / bf16},
                        "torch float32": {"seconds": float32, "ratio": ours / float32},
                    }
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _blocks(device, tokens: int) -> tuple[Work, Work, Work]:
    """Emulated, torch in bfloat16, torch in float32; so do the others."""
    model = models("real")["transformer"]
    config = TransformerConfig.from_dict(dict(model.config))
    transformer = Transformer(config, weights(model, device))
    pooled = upload(torch.randn(1, 1, 1, config.pooled_projection_dim), device, ttnn.bfloat16)
    step = Modulation(config, weights(model, device))([0.7], 2.5, pooled).step()
    ids = image_ids(1, tokens - CONTEXT, 0)
    positions = Positions.of(ids, CONTEXT, config, Parallel(Mesh(device)))
    x, context, image = (
        upload(torch.randn(1, 1, rows, config.inner_dim), device, ttnn.bfloat16)
        for rows in (tokens, CONTEXT, tokens - CONTEXT)
    )
    double, single = transformer.double_blocks[0], transformer.single_blocks[0]
    ours = {
        "double block": lambda: double(image, context, positions, step.double[0]),
        "single block": lambda: single(x, positions, step.single[0]),
    }

    def theirs(model) -> Work:
        inputs = {
            "hidden_states": torch.randn(1, tokens - CONTEXT, model.inner_dim, dtype=model.dtype),
            "encoder_hidden_states": torch.randn(1, CONTEXT, model.inner_dim, dtype=model.dtype),
            "temb": torch.randn(1, model.inner_dim, dtype=model.dtype),
            "image_rotary_emb": model.pos_embed(torch.cat([torch.zeros(CONTEXT, 3), ids])),
        }
        return {
            "double block": lambda: model.transformer_blocks[0](**inputs),
            "single block": lambda: model.single_transformer_blocks[0](**inputs),
        }

    return ours, theirs(in_bf16(model)), theirs(model)


def _encoder(device, name: str, component: str, encoder_class: type, tokens: int) -> tuple[Work, Work, Work]:
    """A text encoder, its embedding included."""
    model = models("real")[component]
    model16, encoder = in_bf16(model), encoder_class(model.config, weights(model, device))
    ids = torch.randint(3, model.config.vocab_size, (tokens,))
    return {name: lambda: encoder(ids)}, {name: lambda: model16(ids[None])}, {name: lambda: model(ids[None])}


def _vae(device, pixels: int) -> tuple[Work, Work, Work]:
    model = models("real")["vae"]
    config = VAEConfig.from_dict(dict(model.config))
    encoder, decoder = (part(config, weights(model, device)) for part in (Encoder, Decoder))
    picture = torch.rand(3, pixels, pixels) * 2 - 1
    edge = pixels // config.scale_factor
    latents = torch.randn(1, config.latent_channels, edge, edge)
    tokens = pack_latents(latents)[0]
    ours = {
        "VAE encoder": lambda: to_tokens(encoder(picture)),
        "VAE decoder": lambda: to_picture(decoder(tokens, pixels, pixels)),
    }

    def theirs(model) -> Work:
        return {
            "VAE encoder": lambda: model.encode(picture[None].to(model.dtype)).latent_dist.mode(),
            "VAE decoder": lambda: model.decode(latents.to(model.dtype)).sample,
        }

    return ours, theirs(in_bf16(model)), theirs(model)


def _best(work: Callable, rounds: int, name: str) -> float:
    """Seconds, the best of several rounds after one to warm up, or of that one if it was long."""
    times = []
    for i in tqdm(range(rounds + 1), desc=name, leave=False, disable=None):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
        if i == 0 and times[0] > LONG:
            break
    return min(times[1:] or times)


if __name__ == "__main__":
    main()
