"""The transformer's modules in Black Forest Labs' own files, which have several of diffusers' in one matrix.

Their code is github.com/black-forest-labs/flux, `src/flux/model.py`; diffusers' converter from it is
`convert_flux_transformer_checkpoint_to_diffusers`.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Source:
    """Where a module's rows (of its weight, and of its bias) stand in those of another.

    Attributes:
        module: whose rows are cut into `of` equal parts.
        parts: numbers of those that are the module's, one below the other.
    """

    module: str
    parts: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Of a tensor of the source [rows, ...]."""
        if self.parts == tuple(range(self.of)):
            return x
        parts = x.chunk(self.of)
        return torch.cat([parts[i] for i in self.parts]) if len(self.parts) > 1 else parts[self.parts[0]]


# By module of theirs, that of diffusers, or those that share its rows with how many parts each has.
_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.qkv": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1},
    "txt_attn.qkv": {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1},
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE = {
    "modulation.lin": "norm.linear",
    "linear1": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4},
    "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}


def sources(num_layers: int, num_single_layers: int) -> dict[str, Source]:
    """By module of diffusers' FluxTransformer2DModel, with so many double and single blocks, its source.

    A norm's parameter is `scale` in their files and `weight` in diffusers'; all others have one name.
    """
    found = {name: Source(module) for module, name in _EMBEDDERS.items()}
    # Their output norm gives shift and scale, diffusers' the other way round.
    found["norm_out.linear"] = Source("final_layer.adaLN_modulation.1", (1, 0), 2)
    for layers, rules, theirs, ours in (
        (num_layers, _DOUBLE, "double_blocks", "transformer_blocks"),
        (num_single_layers, _SINGLE, "single_blocks", "single_transformer_blocks"),
    ):
        for i in range(layers):
            for module, names in rules.items():
                names = {names: 1} if isinstance(names, str) else names
                first, of = 0, sum(names.values())
                for name, parts in names.items():
                    found[f"{ours}.{i}.{name}"] = Source(f"{theirs}.{i}.{module}", (*range(first, first + parts),), of)
                    first += parts
    return found
