"""The recipe runs from nothing to a checkpoint, and goes on where it was stopped."""

from dataclasses import replace

import pytest
import torch

from reference.make_checkpoint import make_checkpoint
from reference.pipeline import load
from reference.random_models import build_models
from reference.sizes import SIZES
from reference.train import Recipe, train
from reference.training.loop import fit
from reference.training.muon import orthogonalise
from reference.training.vae import train_decoder

QUICK = Recipe(
    SIZES["tiny"],
    vae_steps=2,
    vae_batch=4,
    decoder_steps=1,
    text_steps=2,
    text_batch=16,
    families=12,
    transformer_steps=2,
    batch=6,
)


def test_the_recipe_gives_a_checkpoint_and_resumes(tmp_path):
    made = make_checkpoint(tmp_path / "made")
    trained = train(tmp_path / "trained", tmp_path / "work", QUICK)

    def names(folder):
        return {path.relative_to(folder) for path in folder.rglob("*")}

    assert names(trained) == names(made)
    first = load(trained).transformer.proj_out.weight
    assert first.abs().sum() > 0

    again = load(train(tmp_path / "again", tmp_path / "work", QUICK)).transformer.proj_out.weight
    assert torch.equal(first, again)
    longer = train(tmp_path / "longer", tmp_path / "work", replace(QUICK, transformer_steps=3))
    assert not torch.equal(first, load(longer).transformer.proj_out.weight)


def test_the_decoder_learns_and_latents_stay(tmp_path):
    def values(module):
        return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])

    vae = build_models(SIZES["tiny"], 64, 64)["vae"]
    encoder, decoder = values(vae.encoder), values(vae.decoder)
    vae = train_decoder(vae, tmp_path / "decoder.pt", steps=2, batch=1)
    assert torch.equal(values(vae.encoder), encoder)
    assert not torch.equal(values(vae.decoder), decoder)


def test_an_interrupted_fit_ends_like_a_whole_one(tmp_path):
    def run(file, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

        def loss(step):
            if step == stop:
                raise KeyboardInterrupt
            data = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            return (model(data) - data.sum(1, keepdim=True)).square().mean()

        return fit("line", model, [optimizer], loss, 20, file, save_every=5)

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped.pt", stop=13)
    assert torch.equal(whole.weight, run(tmp_path / "stopped.pt").weight)


def test_orthogonalise_brings_singular_values_near_one():
    matrices = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5 and values.max() < 1.5
