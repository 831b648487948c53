"""From nothing to a trained tiny FLUX.1 Kontext: one command, seeded, resumable.

    python -m reference.train OUT

Five stages: tokenizers, VAE, its decoder alone, text encoders, then transformer and text encoders together. The state
of each lies in a working folder, so that the same command goes on where it was stopped, and `--steps 0` writes what an
unfinished run has learnt so far. OUT gets the averaged weights in bfloat16.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from loguru import logger

from .make_checkpoint import Models, build_models, new_folder, write_models, write_tokenizers
from .sizes import TRAINED, Size
from .tokenizers import load_tokenizers
from .training.text import TextEncoders, train_text
from .training.transformer import precompute, train_transformer
from .training.vae import psnr, train_decoder, train_vae


@dataclass(frozen=True)
class Recipe:
    """How much of each stage: steps, examples in a step, and families of scenes that the transformer learns from."""

    size: Size = TRAINED
    vae_steps: int = 2500
    vae_batch: int = 16
    decoder_steps: int = 1600
    text_steps: int = 800
    text_batch: int = 128
    families: int = 2000
    transformer_steps: int = 6200
    batch: int = 32
    compiled: bool = False


def train(out: str | Path, work: str | Path, recipe: Recipe = Recipe(), seed: int = 0) -> Path:
    """Trains a checkpoint.

    Args:
        out: a new folder for the checkpoint.
        work: a folder for the states; one that has states of the same recipe and seed in it is gone on with.
        recipe: sizes and steps.
        seed: of weights and data.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` has something in it.
    """
    work = Path(work)
    with new_folder(out) as folder:
        models = train_models(work, recipe, seed)
        shutil.copytree(work / "tokenizers", folder, dirs_exist_ok=True)
        write_models(folder, models)
    return Path(out)


def train_models(work: Path, recipe: Recipe, seed: int = 0) -> Models:
    """The stages one after the other; returns the averaged models in float32."""
    if not (work / "tokenizers").exists():
        with new_folder(work / "tokenizers") as folder:
            write_tokenizers(folder)
    tokenizers = load_tokenizers(work / "tokenizers")
    torch.manual_seed(seed)
    models = build_models(recipe.size, *(len(tokenizer) for tokenizer in tokenizers))
    vae = train_vae(models["vae"], work / "vae.pt", recipe.vae_steps, seed, recipe.vae_batch, recipe.compiled)
    vae = train_decoder(vae, work / "decoder.pt", recipe.decoder_steps, seed, compiled=recipe.compiled)
    logger.info(f"vae: {psnr(vae):.1f} dB on new scenes")
    encoders = TextEncoders(models["text_encoder"], models["text_encoder_2"], tokenizers)
    encoders = train_text(encoders, work / "text.pt", recipe.text_steps, seed, recipe.text_batch)
    latents = precompute(vae, work / "latents.pt", recipe.families, seed)
    trained = train_transformer(
        models["transformer"], encoders, latents, work / "transformer.pt", recipe.transformer_steps, seed, recipe.batch
    )
    encoders = trained["encoders"]
    return {
        "text_encoder": encoders.clip,
        "text_encoder_2": encoders.t5,
        "transformer": trained["transformer"],
        "vae": vae,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny FLUX.1 Kontext checkpoint from nothing.")
    parser.add_argument("out")
    parser.add_argument("--work", default="out/train", help="folder of the states (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Recipe.transformer_steps, help="of the transformer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the VAE's training step")
    arguments = parser.parse_args()
    recipe = Recipe(transformer_steps=arguments.steps, compiled=arguments.compile)
    print(train(arguments.out, arguments.work, recipe, arguments.seed))


if __name__ == "__main__":
    main()
