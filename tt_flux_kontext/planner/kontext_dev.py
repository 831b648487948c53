"""FLUX.1 Kontext [dev] without its weights: configs, tensors that have shapes alone, and edits of no meaning."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from tt_flux_kontext.checkpoint import Entry, Tensors
from tt_flux_kontext.edit import Editor
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.weights import Weights
from tt_flux_kontext.precision import FULL, PRECISIONS
from tt_flux_kontext.request import Edit, Mask, Text
from tt_flux_kontext.residency import COMPONENTS, MODELS, Models

CLIP_TOKENS = 77

CONFIGS = {
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "eos_token_id": 2,
    },
    "text_encoder_2": {
        "architectures": ["T5EncoderModel"],
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "num_heads": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "transformer": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}


class ShapeCheckpoint:
    """Stands in for a `Checkpoint` of FLUX.1 Kontext [dev]."""

    def config(self, component: str, class_name: str) -> dict:
        return CONFIGS[component]

    def tensors(self, component: str) -> "ShapeTensors":
        _, read_config = COMPONENTS[component]
        tensors = ShapeTensors(component)
        for owner, model_class in MODELS.values():
            if owner == component:
                model_class(read_config(CONFIGS[component]), _Wishes(tensors, FULL, Parallel(Mesh(None)), place=False))
        return tensors


class ShapeTensors(Tensors):
    """Of one component."""

    shapes_only = True

    def __init__(self, component: str):
        self.folder = Path(component)
        self.entries: dict[str, Entry] = {}

    def read(self, key: str) -> torch.Tensor:
        return torch.empty(self.entries[key].shape, device="meta")


class _Wishes(Weights):
    """Enters what a model asks for. To ask diffusers for the shapes would take seconds to import it."""

    def _note(self, name: str, shape: tuple[int, ...], size: int) -> None:
        self.tensors.entries[self.prefix + name] = Entry(self.tensors.folder, shape)


def full_size_editor(device, precision: str, split: tuple[int, int] | None = None) -> Editor:
    """The full-size models on a device. Their weights take their place there, with whatever values it had."""
    return Editor(Models(ShapeCheckpoint(), device, PRECISIONS[precision], split), _tokenize, _tokenize)


def full_size_edit(
    size: tuple[int, int],
    references: Sequence[tuple[int, int]],
    images: int,
    text_tokens: int,
    steps: int = 2,
    masked: bool = False,
) -> Edit:
    """An edit of black pictures, with arguments as those of a planner's `Request`."""
    height, width = size
    tokens = (height // 16) * (width // 16)
    return Edit(
        text=Text(clip=[""], t5=[""]),
        negative=None,
        size=(height, width),
        picture_sizes=references,
        sigmas=[1 - i / steps for i in range(steps + 1)],
        guidance=2.5,
        true_cfg_scale=1.0,
        images_per_prompt=images,
        max_sequence_length=text_tokens,
        mask=Mask(torch.ones(1, tokens, 64), seen=True, mixed=True) if masked else None,
        latents=torch.zeros(images, tokens, 64),
        pictures=[torch.zeros(1, 3, *reference) for reference in references],
    )


def _tokenize(prompts: list[str], max_length: int = 1, **_) -> SimpleNamespace:
    """Stands in for both tokenizers: as many tokens as there can be."""
    return SimpleNamespace(input_ids=torch.zeros(len(prompts), max_length, dtype=torch.int64))


_tokenize.model_max_length = CLIP_TOKENS
