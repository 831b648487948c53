"""A LoRA for a trained checkpoint: the transformer learns a new shape, and nothing else of the checkpoint changes.

The rectified flow of the recipe's last stage, with low-rank matrices beside the linear layers of all blocks. Three of
four sentences name the new shape; the others keep right what was known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from tqdm import tqdm

from ..lora import ALPHA, RANK
from ..scenes import Edit, edits, family, is_held_out
from ..tokenizers import T5_LENGTH
from ..wording import EDIT_KINDS, SHAPES
from .loop import fit
from .text import TextEncoders, text_length
from .transformer import flow_loss, tokens
from .vae import encode, to_tensor

_KINDS = EDIT_KINDS + 2 * ("reshape", "two")  # the ones that are hard to learn more often


class LowRank(torch.nn.Module):
    """What a LoRA adds to a linear layer's output, as a hook of its forward pass: ALPHA / RANK * B A input."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.lora_A = torch.nn.Linear(linear.in_features, RANK, bias=False)
        self.lora_B = torch.nn.Linear(RANK, linear.out_features, bias=False)
        torch.nn.init.zeros_(self.lora_B.weight)

    def forward(self, linear: torch.nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output + ALPHA / RANK * self.lora_B(self.lora_A(inputs[0]))


@dataclass(frozen=True)
class Example:
    """An edit, and the normalised latents [16, 16, 16] of the pictures before and after it."""

    edit: Edit
    before: torch.Tensor
    after: torch.Tensor


Examples = Mapping[str, list[Example]]
"""By kind of edit."""


def examples(vae: torch.nn.Module, shape: str, families: int, seed: int = 0) -> tuple[Examples, Examples]:
    """Edits that training may see, by kind: whose sentences name the new shape, and others."""
    new, known = ({kind: [] for kind in EDIT_KINDS} for _ in range(2))
    for index in tqdm(range(families), "pictures"):
        rng = Random(f"lora {seed} {index}")
        scenes = family(rng, shapes=(*SHAPES, shape))
        latents = dict(zip(scenes, encode(vae, to_tensor(scenes))))
        for edit in edits(scenes, rng):
            if not is_held_out(edit.instruction):
                kinds = new if shape in edit.instruction.lower() else known
                kinds[edit.kind].append(Example(edit, latents[edit.before], latents[edit.after]))
    return new, known


def attach(transformer: FluxTransformer2DModel) -> dict[str, LowRank]:
    """Puts fresh matrices beside the linear layers of all blocks; gives them by the layers' names."""
    added = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and "transformer_blocks." in name:
            added[name] = LowRank(module)
            module.register_forward_hook(added[name])
    return added


def train_lora(
    pipe: FluxKontextPipeline,
    new: Examples,
    known: Examples,
    file: Path,
    steps: int,
    seed: int = 0,
    batch: int = 16,
) -> dict[str, torch.Tensor]:
    """Trains a LoRA for the pipeline's transformer, which is frozen and has the LoRA's hooks afterwards.

    Args:
        new: edits with what shall be learnt in them.
        known: edits of which a quarter of each batch is drawn.
        file: the state of the training, to resume from.
        batch: edits in a step; an eighth of it when the text has 512 tokens.

    Returns:
        The averaged matrices by PEFT's names: `<layer>.lora_A.weight` [RANK, in] and `<layer>.lora_B.weight`
        [out, RANK].
    """
    encoders = TextEncoders(pipe.text_encoder, pipe.text_encoder_2, (pipe.tokenizer, pipe.tokenizer_2))
    model = torch.nn.ModuleDict({"transformer": pipe.transformer, "encoders": encoders}).requires_grad_(False)
    torch.manual_seed(seed)
    added = attach(pipe.transformer)
    matrices = torch.nn.ModuleList(added.values())
    optimizer = torch.optim.AdamW(matrices.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)

    def loss(step: int) -> torch.Tensor:
        rng = Random(f"lora {seed} {step}")
        torch.manual_seed(hash((seed, step)))
        length = text_length(rng)
        count = batch if length < T5_LENGTH else max(1, batch // 8)
        drawn = [_draw(known if i % 4 == 3 else new, rng) for i in range(count)]
        before, after = tokens([each.before for each in drawn]), tokens([each.after for each in drawn])
        return flow_loss(model, [each.edit.instruction for each in drawn], length, before, after)

    averaged = fit("lora", matrices, [optimizer], loss, steps, file, decay=0.99)
    return {f"{layer}.{key}": value for layer, m in zip(added, averaged) for key, value in m.state_dict().items()}


def _draw(kinds: Examples, rng: Random) -> Example:
    return rng.choice(kinds[rng.choice([kind for kind in _KINDS if kinds[kind]])])
