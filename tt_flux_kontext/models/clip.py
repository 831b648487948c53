"""The CLIP text encoder (transformers' CLIPTextModel; arXiv:2103.00020), of which Flux takes the pooled output."""

import torch
from transformers import CLIPTextConfig

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import CheckpointError
from tt_flux_kontext.checkpoint.files import LAYERS, transformers_config
from tt_flux_kontext.models.layers import Embedding, LayerNorm, Linear, biased_attention
from tt_flux_kontext.models.weights import Weights, upload

MASKED = -1e9  # finite: -inf in mask arithmetic gives NaN


_FIELDS = {
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": int,
    "max_position_embeddings": int,
    "layer_norm_eps": float,
    "hidden_act": str,
    "eos_token_id": range(0, 2**31),
}


def clip_config(config: dict) -> CLIPTextConfig:
    """transformers' config of the checkpoint's text_encoder/config.json; `CheckpointError` where TT-NN can't run it."""
    result = transformers_config(CLIPTextConfig, "text_encoder/config.json", config, _FIELDS)
    if result.hidden_size % (32 * result.num_attention_heads):
        raise CheckpointError(
            f"text_encoder/config.json: hidden_size ({result.hidden_size}) must be num_attention_heads "
            f"({result.num_attention_heads}) times a multiple of 32."
        )
    if result.hidden_act not in ("quick_gelu", "gelu"):
        raise CheckpointError(f"text_encoder/config.json: hidden_act {result.hidden_act} is not supported.")
    return result


def quick_gelu(x: "ttnn.Tensor") -> "ttnn.Tensor":
    """x sigmoid(1.702 x)."""
    sigmoid = ttnn.UnaryWithParam(ttnn.UnaryOpType.SIGMOID)
    return ttnn.multiply(x, ttnn.multiply(x, 1.702, activations=[sigmoid]))


def end_of_text(ids: torch.Tensor, eos_token_id: int) -> int:
    """Index of the token whose state is the pooled output. ids: int64 [S].

    Configs of OpenAI's checkpoints name a wrong end token, 2; there it is the highest id.
    """
    return int(ids.argmax() if eos_token_id == 2 else (ids == eos_token_id).int().argmax())


class CLIPLayer:
    """Causal self-attention and feed-forward, each behind a layer norm and added to its input.

    States between layers are float32: rounded to bfloat16 they would be most of the model's error.
    """

    def __init__(self, config: CLIPTextConfig, weights: Weights):
        dim = config.hidden_size
        self.heads = config.num_attention_heads // weights.parallel.tp
        self.norm1 = LayerNorm(weights, "layer_norm1", dim, config.layer_norm_eps)
        self.qkv = Linear(
            weights.at("self_attn"), "q_proj", "k_proj", "v_proj", in_features=dim, out_features=dim, split="columns"
        )
        self.out = Linear(weights, "self_attn.out_proj", in_features=dim, out_features=dim, split="rows")
        self.norm2 = LayerNorm(weights, "layer_norm2", dim, config.layer_norm_eps)
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = Linear(
            weights,
            "mlp.fc1",
            in_features=dim,
            out_features=config.intermediate_size,
            activation=None if self.quick else "GELU",
            split="columns",
        )
        self.fc2 = Linear(weights, "mlp.fc2", in_features=config.intermediate_size, out_features=dim, split="rows")
        self.scale = (dim // config.num_attention_heads) ** -0.5
        self.compute_config = weights.compute_config

    def __call__(self, x: "ttnn.Tensor", mask: "ttnn.Tensor") -> "ttnn.Tensor":
        """x: float32 [1, 1, S, hidden_size]. mask: float32 [1, 1, S, S]."""
        qkv = self.qkv(self.norm1(x))
        attention = biased_attention(qkv, mask, self.heads, self.compute_config, scale=self.scale)
        x = ttnn.add(x, self.out(attention, dtype=ttnn.float32))
        hidden = self.fc1(self.norm2(x))
        return ttnn.add(x, self.fc2(quick_gelu(hidden) if self.quick else hidden, dtype=ttnn.float32))


class CLIPTextEncoder:
    """From token ids to the pooled prompt."""

    def __init__(self, config: CLIPTextConfig, weights: Weights):
        self.config = config
        self.device = weights.device
        # The hub's files have a prefix that transformers dropped from the module.
        embedding = weights.either("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight")
        model = weights.at("text_model") if embedding.startswith("text_model.") else weights
        dim = config.hidden_size
        self.token_embedding = Embedding(model, "embeddings.token_embedding", config.vocab_size, dim)
        self.position_embedding = Embedding(model, "embeddings.position_embedding", config.max_position_embeddings, dim)
        model.either("embeddings.position_ids")  # a buffer that old files carry
        self.layers = [CLIPLayer(config, model.at(f"encoder.layers.{i}")) for i in range(config.num_hidden_layers)]
        self.final_layer_norm = LayerNorm(model, "final_layer_norm", dim, config.layer_norm_eps)

    @staticmethod
    def divides(config: CLIPTextConfig, chips: int) -> bool:
        """Whether its heads and feed-forward can be split over so many chips."""
        return config.num_attention_heads % chips == 0 and config.intermediate_size % (ttnn.TILE_SIZE * chips) == 0

    def __call__(self, ids: torch.Tensor) -> "ttnn.Tensor":
        """ids: int64 [S], at most max_position_embeddings. Returns the pooled state, float32 [1, 1, 1, hidden]."""
        tokens, dim = len(ids), self.config.hidden_size
        mask = torch.full((1, 1, tokens, tokens), MASKED).triu(diagonal=1)
        mask = upload(mask, self.device, ttnn.float32)
        x = ttnn.add(
            self.token_embedding(upload(ids[None], self.device, ttnn.uint32, tiled=False)),
            self.position_embedding(upload(torch.arange(tokens)[None], self.device, ttnn.uint32, tiled=False)),
            dtype=ttnn.float32,
        )
        x = ttnn.reshape(x, (1, 1, tokens, dim))
        for layer in self.layers:
            x = layer(x, mask)
        row = end_of_text(ids, self.config.eos_token_id)
        return self.final_layer_norm(ttnn.slice(x, [0, 0, row, 0], [1, 1, row + 1, dim]))
