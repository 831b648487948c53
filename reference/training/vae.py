"""Stages 1 and 2 of the recipe: the VAE, then its decoder alone.

Trained in the space that the transformer works in, `(z - shift_factor) * scaling_factor`, with three aims beside the
picture itself: each channel has mean 0 and standard deviation 1; pictures survive a little noise on the latents, which
the posterior's variance states; and the colour and kind of the shape at a latent can be read off it linearly (two
heads that are thrown away), which makes edits easy to learn.
"""

import math
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ..scenes import SIDE, Scene, draw, draw_kinds, family
from ..wording import COLOURS, SHAPES
from .loop import fit
from .muon import Muon

LATENT_NOISE = 0.15
"""Standard deviation of the noise on normalised latents in training."""

_PALETTE = torch.tensor(list(COLOURS.values())) / 127.5 - 1  # [colours, 3]


def train_vae(vae: AutoencoderKL, file: Path, steps: int, seed: int = 0, batch: int = 16, compiled: bool = False):
    """Trains the VAE, on 64 x 64 crops for three quarters of the steps and then on whole pictures; returns it averaged.

    Args:
        vae: with fresh weights; changed in place.
        file: the state of the training, to resume from.
        batch: crops in a step; whole pictures are a quarter as many.
        compiled: use torch.compile: quicker steps after about two minutes.
    """
    _state_posterior(vae)
    heads = torch.nn.Conv2d(16, len(COLOURS) + 1 + len(SHAPES), 1)
    model = torch.nn.ModuleDict({"vae": vae, "heads": heads}).to(memory_format=torch.channels_last)
    objective = torch.compile(_objective, dynamic=False) if compiled else _objective

    def loss(step: int) -> torch.Tensor:
        whole = step >= 3 * steps // 4
        count, side = (batch // 4, SIDE) if whole else (batch, SIDE // 2)
        pictures, kinds = _batch(Random(f"vae {seed} {step}"), count, side)
        torch.manual_seed(hash((seed, step)))
        return objective(model, pictures, kinds)

    return fit("vae", model, _optimizers(model), loss, steps, file, decay=0.995)["vae"]


def train_decoder(vae: AutoencoderKL, file: Path, steps: int, seed: int = 0, batch: int = 4, compiled: bool = False):
    """Trains the decoder on whole pictures, at a quarter of the rates; returns the VAE with the decoder averaged.

    Latents stay what they are, so that this may come at any time, even after the transformer. Shapes weigh as much as
    the ground, however small they are, and noise on the latents is anything from none to `train_vae`'s: what an edit
    should leave alone gets sharper.

    Args:
        vae: trained; changed in place.
        file: the state of the training, to resume from.
        batch: pictures in a step.
        compiled: as for `train_vae`.
    """
    vae = vae.to(memory_format=torch.channels_last)
    objective = torch.compile(_decoder_objective, dynamic=False) if compiled else _decoder_objective

    def loss(step: int) -> torch.Tensor:
        pictures, kinds = _batch(Random(f"decoder {seed} {step}"), batch, SIDE)
        torch.manual_seed(hash((seed, step)))
        latents = encode(vae, pictures)
        latents += LATENT_NOISE * torch.rand(batch, 1, 1, 1) * torch.randn_like(latents)
        return objective(vae, latents, pictures, kinds)

    vae.decoder = fit("decoder", vae.decoder, _optimizers(vae.decoder, rate=0.25), loss, steps, file, decay=0.995)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in -1 ... 1 to normalised latents [B, 16, H / 8, W / 8]: the posterior's mode."""
    latents = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents [B, 16, h, w] to pictures [B, 3, 8 h, 8 w] in -1 ... 1."""
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample.clamp(-1, 1)


def to_tensor(scenes: list[Scene]) -> torch.Tensor:
    """Pictures [B, 3, SIDE, SIDE] of scenes in -1 ... 1."""
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(vae: AutoencoderKL, count: int = 16) -> float:
    """Reconstruction of scenes that training never saw, in dB."""
    rng = Random("vae held out")
    pictures = to_tensor([family(rng, variants=0)[0] for _ in range(count)])
    error = decode(vae, encode(vae, pictures)) - pictures
    return -10 * math.log10((error / 2).square().mean().item())


def _optimizers(model: torch.nn.Module, rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """Muon for the weights between the first and the last layers of encoder and decoder, AdamW for all else.

    `rate` multiplies the learning rates.
    """
    inner, outer = [], []
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim > 1 and "block" in name else outer).append(parameter)
    return [Muon(inner, lr=0.02 * rate), torch.optim.AdamW(outer, lr=2e-3 * rate, betas=(0.9, 0.95), weight_decay=0.01)]


def _state_posterior(vae: AutoencoderKL) -> None:
    """Makes the posterior's variance that of LATENT_NOISE, for good: only the mean is trained."""
    last = vae.encoder.conv_out
    with torch.no_grad():
        last.weight[16:] = 0
        last.bias[16:] = 2 * math.log(LATENT_NOISE / vae.config.scaling_factor)


def _batch(rng: Random, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [count, 3, side, side] and shape kinds [count, side, side], cropped around a shape."""
    pictures, kinds = [], []
    for _ in range(count):
        scene = rng.choice(family(rng, variants=1))
        shape = rng.choice(scene.shapes)
        left, top = (
            min(max(round(centre + rng.uniform(-12, 12)) - side // 2, 0), SIDE - side) for centre in (shape.x, shape.y)
        )
        window = (slice(top, top + side), slice(left, left + side))
        pictures.append(np.asarray(draw(scene))[window])
        kinds.append(draw_kinds(scene)[window])
    pictures = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pictures, torch.from_numpy(np.stack(kinds)).long()


def _objective(model: torch.nn.ModuleDict, pictures: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    vae, config = model["vae"], model["vae"].config
    mode = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean
    latents = (mode - config.shift_factor) * config.scaling_factor
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    rebuilt = vae.decode(noisy / config.scaling_factor + config.shift_factor).sample

    distances = (pictures.permute(0, 2, 3, 1).unsqueeze(-2) - _PALETTE).square().sum(-1)
    colours, shapes = model["heads"](noisy).split((len(COLOURS), 1 + len(SHAPES)), dim=1)
    reading = F.cross_entropy(colours, _shares(distances.argmin(-1), len(COLOURS)))
    reading = reading + F.cross_entropy(shapes, _shares(kinds, 1 + len(SHAPES)))

    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    moments = mean.square().mean() + (deviation - 1).square().mean()
    error = rebuilt - pictures
    return error.abs().mean() + 5 * error.square().mean() + 0.05 * reading + 0.1 * moments


def _decoder_objective(
    vae: AutoencoderKL, latents: torch.Tensor, pictures: torch.Tensor, kinds: torch.Tensor
) -> torch.Tensor:
    rebuilt = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    error = rebuilt - pictures
    shapes = (kinds > 0)[:, None]
    squares = [(error.square() * part).sum((1, 2, 3)) / (3 * part.sum((1, 2, 3))) for part in (shapes, ~shapes)]
    return error.abs().mean() + 5 * torch.stack(squares).sum(0).mean()


def _shares(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Share of each class in each 8 x 8 cell: labels [B, H, W] to [B, classes, H / 8, W / 8]."""
    return F.avg_pool2d(F.one_hot(labels, classes).permute(0, 3, 1, 2).float(), 8)
