"""FLUX.1 Kontext [dev] without its weights: the configs of its models, and tensors that have shapes alone."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tt_flux_kontext.checkpoint import Entry

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
        config = CONFIGS[component]
        with torch.device("meta"):
            if component == "text_encoder":
                model = CLIPTextModel(CLIPTextConfig.from_dict(config))
            elif component == "text_encoder_2":
                model = T5EncoderModel(T5Config.from_dict(config))
            else:
                model = {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL}[component].from_config(config)
        return ShapeTensors(component, model.state_dict())


class ShapeTensors:
    """Stands in for the `TensorFiles` of one component."""

    def __init__(self, component: str, tensors: dict[str, torch.Tensor]):
        self.folder = Path(component)
        self.meta = tensors
        self.entries = {key: Entry(self.folder, tuple(tensor.shape)) for key, tensor in tensors.items()}

    def read(self, key: str) -> torch.Tensor:
        return self.meta[key]
