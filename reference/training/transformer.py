"""Stage 4 of the recipe: the transformer learns the edits, and the text encoders go on learning with it.

The VAE is frozen, and the latents of all pictures are computed once. Rectified flow on the tokens of the picture after
the edit, given those of the picture before; one step in six is text to image. The guidance is drawn around FLUX's
2.5 and means nothing here. Text is padded to 48 or 56 tokens, now and then to the pipeline's default of 512, so that
any `max_sequence_length` from 48 on works.
"""

from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from tqdm import tqdm

from ..scenes import SIDE, Edit, Scene, describe, edits, family, is_held_out
from ..tokenizers import T5_LENGTH
from ..wording import EDIT_KINDS
from .loop import fit, save
from .muon import Muon
from .text import TextEncoders, text_length
from .vae import encode, to_tensor

_GRID = SIDE // 16
_VARIANTS = 5
_CHANGED_WEIGHT = 3.0
_KINDS = EDIT_KINDS + 2 * ("background", "two")  # the ones that are hard to learn more often


def scenes_of(seed: int, index: int) -> list[Scene]:
    """A family of scenes of the training set."""
    return family(Random(f"transformer {seed} {index}"), _VARIANTS)


def precompute(vae: AutoencoderKL, file: Path, families: int, seed: int = 0) -> torch.Tensor:
    """Normalised latents [families, pictures, 16, 16, 16] of the training set in float16; the file keeps them."""
    parts = list(torch.load(file, weights_only=True)) if file.exists() else []
    for index in tqdm(range(len(parts), families), "latents", disable=len(parts) >= families):
        parts.append(encode(vae, to_tensor(scenes_of(seed, index))).half())
        if len(parts) % 250 == 0 or len(parts) == families:
            save(file, torch.stack(parts))
    return torch.stack(parts[:families])


def train_transformer(
    transformer: FluxTransformer2DModel,
    encoders: TextEncoders,
    latents: torch.Tensor,
    file: Path,
    steps: int,
    seed: int = 0,
    batch: int = 32,
) -> torch.nn.ModuleDict:
    """Trains the transformer and, at a lower rate, the text encoders; returns both averaged, by those names.

    Args:
        transformer: with fresh weights; changed in place, as are the encoders.
        latents: of `precompute`, with the same seed.
        file: the state of the training, to resume from.
        batch: edits in a step; an eighth of it when the text has 512 tokens.
    """
    prepare(transformer)
    model = torch.nn.ModuleDict({"transformer": transformer, "encoders": encoders}).train()

    def loss(step: int) -> torch.Tensor:
        rng = Random(f"transformer {seed} {step}")
        torch.manual_seed(hash((seed, step)))
        length = text_length(rng)
        count = batch if length < T5_LENGTH else max(1, batch // 8)
        if rng.random() < 1 / 6:
            sentences, after = _pictures(latents, count, seed, rng)
            before = None
        else:
            sentences, before, after = _edits(latents, count, seed, rng)
        return flow_loss(model, sentences, length, before, after)

    return fit("transformer", model, _optimizers(model), loss, steps, file, decay=0.998)


@torch.no_grad()
def prepare(transformer: FluxTransformer2DModel) -> None:
    """Initial weights that learn quickly: open gates, no output, and a third of the heads looking at their own place.

    Such a head gives each token of the new picture the token of the reference picture at the same row and column.
    """
    transformer.proj_out.weight.zero_()
    transformer.proj_out.bias.zero_()
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            gate_attention, gate_mlp = norm.linear.bias.chunk(6)[2::3]
            gate_attention.fill_(1)
            gate_mlp.fill_(1)
    for block in transformer.single_transformer_blocks:
        block.norm.linear.bias.chunk(3)[2].fill_(1)
    heads, axes = transformer.config.num_attention_heads, transformer.config.axes_dims_rope
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        for bias, turn in ((block.attn.to_q.bias, 1), (block.attn.to_k.bias, 0)):
            bias.view(heads, -1)[: max(1, heads // 3)] = _own_place(axes, turn)
        block.attn.norm_q.weight.fill_(1.5)
        block.attn.norm_k.weight.fill_(1.5)


def _own_place(axes: tuple[int, int, int], turn: float) -> torch.Tensor:
    """A query's (turn 1) or key's (turn 0) bias [head width]; the query looks one step ahead on the first id axis."""
    bias = torch.zeros(sum(axes))
    angle = torch.tensor(float(turn))
    bias[0], bias[1] = 3 * angle.cos(), 3 * angle.sin()
    for start in (axes[0], axes[0] + axes[1]):
        bias[start], bias[start + 2] = 3, 3  # the two quickest rotations of the row's and of the column's part
    return bias


def _optimizers(model: torch.nn.ModuleDict) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, parameter in model["transformer"].named_parameters():
        (matrices if parameter.ndim == 2 and "transformer_blocks." in name else others).append(parameter)
    groups = [{"params": others, "lr": 1e-3}, {"params": list(model["encoders"].parameters()), "lr": 2e-4}]
    return [Muon(matrices, lr=0.01), torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)]


def _edits(latents: torch.Tensor, count: int, seed: int, rng: Random) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Sentences and the tokens before and after, [count, tokens, 64], of each kind in `_KINDS` in turn."""
    sentences, before, after = [], [], []
    for i in range(count):
        index, edit = _edit_of_kind(_KINDS[i % len(_KINDS)], len(latents), seed, rng)
        scenes = scenes_of(seed, index)
        sentences.append(edit.instruction)
        before.append(latents[index, scenes.index(edit.before)])
        after.append(latents[index, scenes.index(edit.after)])
    return sentences, tokens(before), tokens(after)


def _edit_of_kind(kind: str, families: int, seed: int, rng: Random) -> tuple[int, Edit]:
    """A family's index and an edit in it that is of the kind and not held out."""
    while True:
        index = rng.randrange(families)
        found = edits(scenes_of(seed, index), rng)
        found = [edit for edit in found if edit.kind == kind and not is_held_out(edit.instruction)]
        if found:
            return index, found[0]


def _pictures(latents: torch.Tensor, count: int, seed: int, rng: Random) -> tuple[list[str], torch.Tensor]:
    """Descriptions and the tokens [count, tokens, 64] of what they describe."""
    places = [(rng.randrange(len(latents)), rng.randrange(latents.shape[1])) for _ in range(count)]
    sentences = [describe(scenes_of(seed, index)[member], rng) for index, member in places]
    return sentences, tokens([latents[place] for place in places])


def tokens(latents: list[torch.Tensor]) -> torch.Tensor:
    """Normalised latents [16, 16, 16] of pictures as the transformer takes them, [pictures, tokens, 64]."""
    return FluxKontextPipeline._pack_latents(torch.stack(latents).float(), len(latents), 16, 2 * _GRID, 2 * _GRID)


def flow_loss(
    model: torch.nn.ModuleDict, sentences: list[str], length: int, before: torch.Tensor | None, after: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the velocity, heavier where the edit changes something; `before` None: text to image."""
    pooled, text = model["encoders"](sentences, length)
    noise = torch.randn_like(after)
    time = torch.sigmoid(0.7 + 1.2 * torch.randn(len(after)))
    noisy = torch.lerp(after, noise, time[:, None, None])
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, _GRID, _GRID, after.device, after.dtype)
    image = noisy
    if before is not None:
        image = torch.cat([noisy, before], dim=1)
        ids = torch.cat([ids, ids + torch.tensor([1.0, 0, 0])])
    velocity = model["transformer"](
        hidden_states=image,
        timestep=time,
        guidance=2.5 * torch.exp(0.2 * torch.randn(len(after))),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(length, 3),
        img_ids=ids,
        return_dict=False,
    )[0][:, : after.shape[1]]
    error = (velocity - (noise - after)).square().mean(-1)
    if before is None:
        return error.mean()
    weight = 1 + _CHANGED_WEIGHT * (after - before).square().mean(-1).clamp(max=1)
    return (weight * error).sum() / weight.sum()
