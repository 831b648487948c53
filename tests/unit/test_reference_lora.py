"""The recipe of the demo's LoRA: what it learns from, that it learns, and what its file says."""

from random import Random

import numpy as np
import torch

from reference.lora import merge_lora, read_lora, write_lora
from reference.pipeline import TINY_KONTEXT, load
from reference.scenes import SIDE, Scene, Shape, draw, family, held_out_edits, is_held_out
from reference.training.lora import attach, examples, train_lora
from reference.training.text import TextEncoders
from reference.training.transformer import flow_loss, tokens
from reference.wording import HEART, SHAPES


def test_a_heart_has_two_lobes_and_a_tip():
    heart = np.asarray(draw(Scene("white", (Shape(HEART, "black", 64, 64, 30),))))[..., 0] < 128
    lobes, tip = heart[64 - 19], heart[64 + 23]
    assert np.diff(lobes.astype(int)).tolist().count(1) == 2 and not lobes[64]
    assert tip[64] and tip.sum() < 6
    ys, xs = np.nonzero(heart)
    assert np.hypot(xs - 63.5, ys - 63.5).max() < 31
    assert (heart == heart[:, ::-1]).mean() > 0.99


def test_scenes_have_a_new_shape_only_where_it_is_asked_for():
    def kinds(**arguments):
        scenes = [scene for seed in range(40) for scene in family(Random(seed), **arguments)]
        return {shape.kind for scene in scenes for shape in scene.shapes}

    assert kinds() == set(SHAPES)
    assert kinds(shapes=(*SHAPES, HEART)) == {*SHAPES, HEART}


def test_held_out_edits_of_a_new_shape_name_it():
    chosen = held_out_edits(10, new=HEART)
    assert [edit.kind for edit in chosen] == 2 * ["recolour", "remove", "add", "reshape", "two"]
    assert all(HEART in edit.instruction.lower() and is_held_out(edit.instruction) for edit in chosen)
    assert draw(chosen[0].before).size == (SIDE, SIDE)


def test_a_few_steps_lower_the_loss_of_what_is_new(tmp_path):
    pipe = load(TINY_KONTEXT)
    new, known = examples(pipe.vae, HEART, families=4)
    assert not any(is_held_out(each.edit.instruction) for kinds in (new, known) for each in sum(kinds.values(), []))

    def loss(pipe) -> float:
        encoders = TextEncoders(pipe.text_encoder, pipe.text_encoder_2, (pipe.tokenizer, pipe.tokenizer_2))
        model = {"transformer": pipe.transformer, "encoders": encoders}
        seen = sum(new.values(), [])[:8]
        torch.manual_seed(0)
        pictures = tokens([each.before for each in seen]), tokens([each.after for each in seen])
        with torch.no_grad():
            return float(flow_loss(model, [each.edit.instruction for each in seen], 48, *pictures))

    before = loss(pipe)
    matrices = train_lora(pipe, new, known, tmp_path / "state.pt", steps=8, batch=4)
    trained = load(TINY_KONTEXT)
    merge_lora(trained.transformer, write_lora(tmp_path / "lora.safetensors", matrices))
    assert loss(trained) < 0.9 * before


def test_a_merged_lora_does_what_its_hooks_do(tmp_path):
    hooked, merged = (load(TINY_KONTEXT).transformer for _ in range(2))
    added = attach(hooked)
    for low_rank in added.values():
        torch.nn.init.normal_(low_rank.lora_B.weight, std=0.02)
        low_rank.bfloat16().float()
    matrices = {f"{layer}.{key}": value for layer, m in added.items() for key, value in m.state_dict().items()}
    file = write_lora(tmp_path / "lora.safetensors", matrices)
    merge_lora(merged, file)
    pairs, _ = read_lora(file)
    assert pairs.keys() == added.keys()
    for layer in ("transformer_blocks.0.norm1.linear", "single_transformer_blocks.3.proj_out"):
        one, other = hooked.get_submodule(layer), merged.get_submodule(layer)
        inputs = torch.randn(2, one.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.allclose(one(inputs), other(inputs), atol=1e-4)
