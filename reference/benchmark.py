"""Time of the emulator against diffusers in bfloat16, in one run: a double and a single block at their real size.

python -m reference.benchmark [--tokens 1024]
"""

import argparse
import time
from collections.abc import Callable

import torch
from diffusers import FluxTransformer2DModel
from tqdm import tqdm

from reference.make_checkpoint import randomize
from reference.torch_models import StateDict
from tt_flux_kontext.backend import choose, ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.models.modulation import Modulation
from tt_flux_kontext.models.transformer import Transformer, TransformerConfig
from tt_flux_kontext.models.weights import Weights, upload
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.resolution import image_ids

CONTEXT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024, help="of text and image together (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many (default: %(default)s)")
    arguments = parser.parse_args()
    choose("emulated")
    model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True).requires_grad_(False)
    randomize(model, seed=0)
    with open_device("emulated:p150") as device, torch.no_grad():
        ours = _emulated(model, device, arguments.tokens)
        theirs = _diffusers(model.bfloat16(), arguments.tokens)
        print(f"{'':<14}{'emulated':>10}{'diffusers bf16':>16}{'ratio':>8}")
        for name in ours:
            seconds = [_best(work[name], arguments.rounds, name) for work in (ours, theirs)]
            print(f"{name:<14}{seconds[0]:>9.3f}s{seconds[1]:>15.3f}s{seconds[0] / seconds[1]:>8.2f}")


def _emulated(model, device, tokens: int) -> dict[str, Callable]:
    config = TransformerConfig.from_dict(dict(model.config))
    weights = Weights(StateDict(model), BF16, device)
    modulation = Modulation(config, weights)
    pooled = upload(torch.randn(1, 1, 1, config.pooled_projection_dim), device, ttnn.bfloat16)
    step = modulation([0.7], 2.5, pooled).step(0)
    transformer = Transformer(config, weights)
    positions = transformer.positions(image_ids(1, tokens - CONTEXT, 0), CONTEXT)
    x, context, image = (
        upload(torch.randn(1, 1, rows, config.inner_dim), device, ttnn.bfloat16)
        for rows in (tokens, CONTEXT, tokens - CONTEXT)
    )
    double, single = transformer.double_blocks[0], transformer.single_blocks[0]
    return {
        "double block": lambda: double(image, context, positions.image, step.double[0]),
        "single block": lambda: single(x, positions.joint, step.single[0]),
    }


def _diffusers(model, tokens: int) -> dict[str, Callable]:
    context, image = (
        torch.randn(1, rows, model.inner_dim, dtype=torch.bfloat16) for rows in (CONTEXT, tokens - CONTEXT)
    )
    inputs = {
        "hidden_states": image,
        "encoder_hidden_states": context,
        "temb": torch.randn(1, model.inner_dim, dtype=torch.bfloat16),
        "image_rotary_emb": model.pos_embed(torch.cat([torch.zeros(CONTEXT, 3), image_ids(1, tokens - CONTEXT, 0)])),
    }
    return {
        "double block": lambda: model.transformer_blocks[0](**inputs),
        "single block": lambda: model.single_transformer_blocks[0](**inputs),
    }


def _best(work: Callable, rounds: int, name: str) -> float:
    work()
    times = []
    for _ in tqdm(range(rounds), desc=name, leave=False):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
