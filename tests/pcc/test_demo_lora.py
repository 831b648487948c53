"""The demo's LoRA: its file is what diffusers' names ask for, and its edits are diffusers' with the same weights."""

import pytest
from diffusers import FluxKontextPipeline as DiffusersPipeline

from reference.evaluate import editor, evaluate
from reference.lora import ALPHA, HEART_LORA, RANK, merge_lora
from reference.pipeline import TINY_KONTEXT, load
from reference.scenes import held_out_edits
from reference.wording import HEART
from tt_flux_kontext import FluxKontextPipeline

STEPS = 8
EDITS = held_out_edits(5, new=HEART)


def test_the_file_has_diffusers_names():
    tensors, alphas, metadata = DiffusersPipeline.lora_state_dict(
        HEART_LORA, return_alphas=True, return_lora_metadata=True
    )
    assert not alphas and metadata["transformer.r"] == RANK and metadata["transformer.lora_alpha"] == ALPHA
    transformer = load(TINY_KONTEXT).transformer
    layers = {key.removeprefix("transformer.").rsplit(".lora_", 1)[0] for key in tensors}
    assert layers == set(metadata["transformer.target_modules"]) and len(tensors) == 2 * len(layers)
    for layer in layers:
        out, inside = transformer.get_submodule(layer).weight.shape
        a, b = (tensors[f"transformer.{layer}.lora_{letter}.weight"] for letter in "AB")
        assert a.shape == (RANK, inside) and b.shape == (out, RANK) and a.isfinite().all() and b.any()
    assert HEART_LORA.stat().st_size < 2e6


@pytest.mark.slow
def test_its_edits_are_those_of_diffusers(mesh_device):
    theirs = load(TINY_KONTEXT)
    merge_lora(theirs.transformer, HEART_LORA)
    ours = FluxKontextPipeline.from_pretrained(TINY_KONTEXT, device=mesh_device)
    ours.set_progress_bar_config(disable=True)
    without = right(ours)
    ours.load_lora_weights(HEART_LORA)
    assert right(ours) == right(theirs) >= 3 > without


def right(pipe) -> int:
    return sum(outcome.success for outcome in evaluate(editor(pipe, STEPS), EDITS))
