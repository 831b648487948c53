"""LoRA files in the layouts of trainers: held against diffusers' converters at full size, and worked by hand."""

import json
import re

import pytest
import torch
from diffusers import FluxKontextPipeline as Diffusers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.lora_files import FULL, TINY, kohya, pairs, peft, their_modules, xlabs
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.lora.layouts import Metadata, read_layout
from tt_flux_kontext.lora.targets import Targets
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint

COMPONENTS = ("transformer", "text_encoder", "text_encoder_2")
TINY_KONTEXT = "demo/tiny_kontext"


@pytest.fixture(scope="module")
def full():
    return {component: ShapeCheckpoint().tensors(component).entries for component in COMPONENTS}


@pytest.fixture(scope="module")
def tiny():
    checkpoint = Checkpoint(TINY_KONTEXT)
    return {component: checkpoint.tensors(component).entries for component in COMPONENTS}


def read(state, entries, metadata=None):
    return read_layout(state, metadata, Targets(entries), entries, "the file")


def deltas(state, entries, metadata=None) -> dict[str, torch.Tensor]:
    """Of the transformer, by tensor."""
    layout = read(state, entries, metadata)
    assert not layout.unmatched
    return {key: change.added_to(torch.zeros(()), 1.0) for key, change in layout.changes["transformer"].items()}


def probed(changes) -> dict[str, torch.Tensor]:
    """What each change makes of a vector: at full size its matrix would take a second."""
    found = {}
    for key, change in changes.items():
        vector = torch.linspace(-1, 1, change.added.down.shape[1])
        found[key] = change.scale * change.source.rows(change.added.up).float() @ (change.added.down.float() @ vector)
    return found


def probed_by_diffusers(state) -> dict[str, torch.Tensor]:
    """The same of what diffusers reads, by its names, where it loses neither the prefix nor the alpha."""
    converted, alphas, _ = Diffusers.lora_state_dict(
        {key: value.clone() for key, value in state.items()}, return_alphas=True, return_lora_metadata=True
    )
    assert not alphas
    found = {}
    for key, down in converted.items():
        ending = re.search(r"\.lora_A\.weight$|[._]lora(_linear_layer)?\.down\.weight$", key)
        if not ending:
            continue
        name = key[: ending.start()]
        up = converted[name + ending[0].replace("lora_A", "lora_B").replace("down", "up")]
        found[name] = up.float() @ (down.float() @ torch.linspace(-1, 1, down.shape[1]))
    return found


def check(changes, theirs, component="transformer") -> None:
    """Ours has exactly theirs."""
    ours = {key.removesuffix(".weight"): value for key, value in probed(changes).items()}
    theirs = {name.removeprefix(f"{component}."): value for name, value in theirs.items()}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-4)


class TestAgainstDiffusers:
    """At full size, which is the one that its converters know."""

    def test_kohya(self, full):
        changes = {module: pair for module, pair in pairs(their_modules(**FULL)).items() if "final" not in module}
        layout = read(kohya(changes, alpha=2), full)
        assert len(layout.modules) == len(changes) and not layout.unmatched
        check(layout.changes["transformer"], probed_by_diffusers(kohya(changes, alpha=2)))

    def test_final_layer(self, full):
        # Without an alpha, which diffusers throws away here.
        changes = {module: pair for module, pair in pairs(their_modules(**FULL)).items() if "final" in module}
        check(read(kohya(changes), full).changes["transformer"], probed_by_diffusers(kohya(changes)))

    def test_fal(self, full):
        known = re.compile(r"(double|single)_blocks|final_layer\.linear")  # to that converter
        changes = {module: pair for module, pair in pairs(their_modules(**FULL)).items() if known.match(module)}
        state = peft(changes, "base_model.model.")
        check(read(state, full).changes["transformer"], probed_by_diffusers(state))

    def test_xlabs(self, full):
        width, modules = FULL["width"], {}
        for i in range(FULL["double"]):
            for n in (1, 2):
                modules[f"double_blocks.{i}.processor.qkv_lora{n}"] = (3 * width, width)
                modules[f"double_blocks.{i}.processor.proj_lora{n}"] = (width, width)
        for i in range(FULL["single"]):
            modules[f"single_blocks.{i}.processor.qkv_lora"] = (3 * width, width)
            modules[f"single_blocks.{i}.processor.proj_lora"] = (width, 5 * width)
        state = xlabs(pairs(modules))
        check(read(state, full).changes["transformer"], probed_by_diffusers(state))

    def test_clip(self, full):
        modules = {
            f"text_model.encoder.layers.{i}.{name}": size
            for i in range(12)
            for name, size in {
                **{f"self_attn.{letter}_proj": (768, 768) for letter in ("q", "k", "v", "out")},
                "mlp.fc1": (3072, 768),
                "mlp.fc2": (768, 3072),
            }.items()
        }
        state = kohya(pairs(modules), alpha=2, prefix="lora_te1_") | kohya(pairs({"img_in": (3072, 64)}))
        ours = read(state, full).changes["text_encoder"]
        theirs = {}
        for name, value in probed_by_diffusers(state).items():
            if name.startswith("text_encoder."):
                theirs[re.sub(r"self_attn\.to_(\w+)", r"self_attn.\1_proj", name)] = value
        prefix = "" if "encoder.layers.0.mlp.fc1.weight" in full["text_encoder"] else "text_model."
        check(
            {prefix + key.removeprefix("text_model."): change for key, change in ours.items()}, theirs, "text_encoder"
        )

    def test_onetrainer_attention(self, full):
        names = [
            f"transformer_blocks.{i}.attn.{name}" for i in range(19) for name in ("to_q", "add_k_proj", "to_out.0")
        ]
        names += [f"single_transformer_blocks.{i}.attn.to_v" for i in range(38)]
        state = kohya(pairs(dict.fromkeys(names, (3072, 3072))), alpha=2, prefix="lora_transformer_")
        check(read(state, full).changes["transformer"], probed_by_diffusers(state))


LAYOUTS = {
    "kohya": kohya,
    "ComfyUI": lambda changes, **_: peft(changes, "diffusion_model."),
    "ComfyUI, whole model": lambda changes, **_: peft(changes, "model.diffusion_model."),
    "fal": lambda changes, **_: peft(changes, "base_model.model."),
    "Black Forest Labs' names": peft,
    "ComfyUI, down and up": lambda changes, **_: {
        key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value
        for key, value in peft(changes, "diffusion_model.").items()
    },
    "LyCORIS": lambda changes, **_: kohya(changes, prefix="lycoris_"),
    "PEFT with its adapter's name": lambda changes, **_: peft(changes, "transformer.", ".default"),
}
# diffusers' names of some modules, with the rows of theirs.
ROWS = {
    "transformer_blocks.1.attn.add_k_proj.weight": ("double_blocks.1.txt_attn.qkv", slice(192, 384)),
    "single_transformer_blocks.3.attn.to_v.weight": ("single_blocks.3.linear1", slice(384, 576)),
    "single_transformer_blocks.0.proj_mlp.weight": ("single_blocks.0.linear1", slice(576, 1344)),
    "transformer_blocks.0.norm1_context.linear.weight": ("double_blocks.0.txt_mod.lin", slice(None)),
    "time_text_embed.text_embedder.linear_1.weight": ("vector_in.in_layer", slice(None)),
}


class TestTinySize:
    """Which diffusers' converters can't do."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout(self, tiny, layout):
        changes = pairs(their_modules(**tiny_size(tiny)))
        found = deltas(LAYOUTS[layout](changes), tiny)
        for key, (module, rows) in ROWS.items():
            down, up = changes[module]
            torch.testing.assert_close(found[key], (up @ down)[rows])
        down, up = changes["final_layer.adaLN_modulation.1"]
        shift, scale = (up @ down).chunk(2)
        torch.testing.assert_close(found["norm_out.linear.weight"], torch.cat([scale, shift]))
        linear = {key for key, entry in tiny["transformer"].items() if len(entry.shape) == 2}
        assert found.keys() == linear

    @pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "lora_transformer_", "lycoris_", ""])
    def test_diffusers_names(self, tiny, prefix):
        modules = {
            key.removesuffix(".weight"): entry.shape
            for key, entry in tiny["transformer"].items()
            if len(entry.shape) == 2
        }
        changes = pairs(modules)
        found = deltas((kohya if prefix.endswith("_") else peft)(changes, prefix=prefix), tiny)
        assert found.keys() == {f"{module}.weight" for module in modules}
        for module, (down, up) in changes.items():
            torch.testing.assert_close(found[f"{module}.weight"], up @ down)

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        rank=st.integers(1, 9), alpha=st.floats(0.1, 64), root=st.booleans(), how=st.sampled_from(["tensor", "header"])
    )
    def test_scale(self, tiny, rank, alpha, root, how):
        module = "transformer_blocks.0.ff.net.2"
        changes = pairs({module: (192, 768)}, rank)
        down, up = changes[module]
        if how == "tensor":
            found = deltas(kohya(changes, alpha, "lora_transformer_"), tiny)
            scale = alpha / rank
        else:
            header = {"transformer.r": rank, "transformer.lora_alpha": 7, "transformer.use_rslora": root}
            header["transformer.alpha_pattern"] = {"ff.net.2": alpha, "ff.net": 3}
            found = deltas(peft(changes, "transformer."), tiny, Metadata(header))
            scale = alpha / (rank**0.5 if root else rank)
        torch.testing.assert_close(found[f"{module}.weight"], scale * up @ down, rtol=1e-4, atol=1e-5)

    def test_lora_bias(self, tiny):
        changes = pairs({"proj_out": (64, 192)})
        (_, up), bias = changes["proj_out"], torch.randn(64)
        state = peft(changes, "transformer.") | {"transformer.proj_out.lora_B.bias": bias}
        state["transformer.proj_out.lora_A.bias"] = torch.ones(4)
        metadata = Metadata({"transformer.lora_alpha": 8})
        torch.testing.assert_close(deltas(state, tiny, metadata)["proj_out.bias"], 2 * (bias + up.sum(1)))

    def test_loha(self, tiny):
        generator = torch.Generator().manual_seed(0)
        w1_a, w1_b, w2_a, w2_b = (
            torch.randn(*size, generator=generator) for size in ((576, 3), (3, 192), (576, 3), (3, 192))
        )
        name = "lycoris_double_blocks_0_img_attn_qkv"
        state = {f"{name}.hada_w1_a": w1_a, f"{name}.hada_w1_b": w1_b, f"{name}.hada_w2_a": w2_a}
        state |= {f"{name}.hada_w2_b": w2_b, f"{name}.alpha": torch.tensor(1.5)}
        whole = 0.5 * (w1_a @ w1_b) * (w2_a @ w2_b)
        found = deltas(state, tiny)
        for part, letter in zip(whole.chunk(3), "qkv"):
            torch.testing.assert_close(found[f"transformer_blocks.0.attn.to_{letter}.weight"], part)

    @pytest.mark.parametrize("low_rank", [True, False])
    def test_lokr(self, tiny, low_rank):
        generator = torch.Generator().manual_seed(0)
        w1, a, b = (torch.randn(*size, generator=generator) for size in ((4, 6), (48, 2), (2, 32)))
        name = "diffusion_model.single_blocks.1.linear2"  # 192 x 960
        w2 = torch.randn(48, 160, generator=generator)
        state = {f"{name}.lokr_w1": w1, f"{name}.alpha": torch.tensor(3.0), f"{name}.lokr_w2": w2}
        scale = 1.0  # of whole factors
        if low_rank:
            b = torch.randn(2, 160, generator=generator)
            del state[f"{name}.lokr_w2"]
            state |= {f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
            w2, scale = a @ b, 1.5
        found = deltas(state, tiny)["single_transformer_blocks.1.proj_out.weight"]
        for i in range(4):
            for j in range(6):
                block = found[48 * i : 48 * (i + 1), 160 * j : 160 * (j + 1)]
                torch.testing.assert_close(block, scale * w1[i, j] * w2, rtol=1e-4, atol=1e-5)

    def test_differences(self, tiny):
        norm = torch.randn(32)
        state = {"diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff": norm}
        state["lora_unet_single_blocks_0_linear1.diff_b"] = bias = torch.randn(1344)
        found = deltas(state, tiny)
        assert torch.equal(found["transformer_blocks.0.attn.norm_k.weight"], norm)
        assert torch.equal(found["single_transformer_blocks.0.proj_mlp.bias"], bias[576:])

    def test_text_encoders(self, tiny):
        clip = next(key for key in tiny["text_encoder"] if key.endswith("layers.0.mlp.fc1.weight"))
        t5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
        for names in (
            {"text_encoder.text_model.encoder.layers.0.mlp.fc1": clip, f"text_encoder_2.{t5[:-7]}": t5},
            {"lora_te1_text_model_encoder_layers_0_mlp_fc1": clip, "lora_te3_" + t5[:-7].replace(".", "_"): t5},
            {
                "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": clip,
                f"text_encoders.t5xxl.transformer.{t5[:-7]}": t5,
            },
        ):
            sizes = {name: (tiny["text_encoder"] | tiny["text_encoder_2"])[key].shape for name, key in names.items()}
            changes = read(xlabs(pairs(sizes)), tiny).changes
            assert list(changes["text_encoder"]) == [clip] and list(changes["text_encoder_2"]) == [t5]


def tiny_size(entries) -> dict[str, int]:
    transformer = entries["transformer"]
    joint = transformer["context_embedder.weight"].shape[1]
    return TINY | {"joint": joint, "pooled": transformer["time_text_embed.text_embedder.linear_1.weight"].shape[1]}


DOWN, UP = torch.ones(4, 192), torch.ones(192, 4)
MODULE = "transformer.transformer_blocks.0.attn.to_q"
GOOD = {f"{MODULE}.lora_A.weight": DOWN, f"{MODULE}.lora_B.weight": UP}


class TestRefusals:
    @pytest.mark.parametrize(
        "state, message",
        [
            (GOOD | {f"{MODULE}.dora_scale": torch.ones(192)}, "the file is DoRA.*dora_scale says so"),
            (GOOD | {f"{MODULE}.lora_magnitude_vector": torch.ones(192)}, "is DoRA"),
            (GOOD | {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(32)}, "a control LoRA"),
            (peft({"transformer.x_embedder": (torch.ones(4, 128), UP)}), "is a control LoRA.*x_embedder has 128 inputs"),
            (GOOD | {"transformer.proj_out.alpha": torch.tensor(1.0)}, "proj_out has alpha alone"),
            (GOOD | {f"{MODULE}.alpha": torch.ones(2)}, r"an alpha of shape \[2\]"),
            ({f"{MODULE}.lora_A.weight": DOWN[:0], f"{MODULE}.lora_B.weight": UP[:, :0]}, r"matrices of \[0, 192\]"),
            (GOOD | {f"{MODULE}.lora_A.bias": torch.ones(3)}, r"a bias of shape \[3\] for rank 4"),
            (kohya({"double_blocks.0.img_attn.qkv": (DOWN, torch.ones(577, 4))}), r"which is \[577, 192\], changes \[192, 192\]"),
            ({f"{MODULE}.lokr_w1": torch.ones(2, 2), f"{MODULE}.lokr_w2": torch.ones(96, 96, 1, 1)}, "lokr_w2 of shape .* is no matrix"),
            ({f"{MODULE}.hada_w1_a": UP, f"{MODULE}.hada_w1_b": DOWN, f"{MODULE}.hada_w2_a": UP[:96], f"{MODULE}.hada_w2_b": DOWN}, r"factors of \[192, 192\] and \[96, 192\]"),
            ({f"{MODULE}.oft_blocks": torch.ones(4, 4)}, "is OFT"),
            ({f"{MODULE}.lora_A.weight": DOWN}, "to_q has no up, but down"),
            (GOOD | {f"{MODULE}.lora_A.weight": DOWN[:3]}, r"matrices of \[3, 192\] and \[192, 4\]"),
            (GOOD | {f"{MODULE}.lora_A.weight": DOWN[:, :96]}, r"changes \[192, 96\] of .*, which is \[192, 192\]"),
            (GOOD | {f"{MODULE}.lora_A.weight": DOWN * torch.nan}, "lora_A.weight has values that are NaN"),
            (GOOD | {f"{MODULE}.lora_down.weight": DOWN}, "has down of .* twice"),
            (GOOD | {f"base_model.model.{k.removeprefix('transformer.')}": v for k, v in GOOD.items()}, "to_q.weight of the transformer twice"),
            (GOOD | {f"{MODULE}.lokr_w1": UP}, "to_q has lokr_w1, which"),
            ({"nobody.lora_A.weight": DOWN, "nobody.lora_B.weight": UP}, "changes nothing of this checkpoint: none of its 2 tensors"),
            ({}, "changes nothing of this checkpoint"),
        ],
    )  # fmt: skip
    def test_in_a_sentence(self, tiny, state, message):
        with pytest.raises(ValueError, match=message):
            read(state, tiny)

    def test_scale_given_twice(self, tiny):
        with pytest.raises(ValueError, match="its scale twice"):
            read(GOOD | {f"{MODULE}.alpha": torch.tensor(4.0)}, tiny, Metadata({"transformer.lora_alpha": 4}))

    def test_dora_of_peft(self, tiny):
        with pytest.raises(ValueError, match="DoRA .use_dora"):
            read(GOOD, tiny, Metadata({"transformer.use_dora": True}))

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[1]",
            '{"transformer.lora_alpha": "8"}',
            '{"transformer.alpha_pattern": {"a": null}}',
            '{"transformer.alpha_pattern": [1]}',
            '{"transformer.alpha_pattern": {"(": 1}}',
        ],
    )
    def test_header_that_is_no_object(self, text):
        with pytest.raises(ValueError, match="lora_adapter_metadata in its header can't be read"):
            Metadata.of({"lora_adapter_metadata": text}, "the file")

    def test_header_of_a_file(self):
        assert Metadata.of({"lora_adapter_metadata": json.dumps({"transformer.r": 4})}, "").settings
        assert Metadata.of({"format": "pt"}, "") is None

    def test_unknown_modules_are_named(self, tiny):
        layout = read(GOOD | {"nobody.lora_A.weight": DOWN, "nobody.lora_B.weight": UP, "extra": UP}, tiny)
        assert layout.modules == [MODULE] and layout.unmatched == ["extra", "nobody"]
