"""Configs of a checkpoint: what is wrong in one is named by file and field, and a scheduler does all that its config says."""

import json
import math

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from hypothesis import assume, given
from hypothesis import strategies as st

from reference.pipeline import TINY_KONTEXT
from tt_flux_kontext.checkpoint import COMPONENTS as FOLDERS
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError
from tt_flux_kontext.residency import COMPONENTS
from tt_flux_kontext.schedule import load_scheduler, sigma_schedule

CHECKPOINT = Checkpoint(TINY_KONTEXT)
INF, NAN = math.inf, math.nan

WRONG = {
    "transformer": {
        "num_layers": ["2", None, 2.0, True, -1, 10**9, [2], {}],
        "num_single_layers": ["4", -1],
        "attention_head_dim": [None, 0, 32.0],
        "num_attention_heads": [0, "6"],
        "axes_dims_rope": [16, None, [], [16, 16], [8, 8, 8, 8], [8, 12, "12"], [7, 13, 12], [[8], 12, 12], {"0": 8}],
        "guidance_embeds": ["false", None, 1],
        "in_channels": [[64], None, "64"],
        "patch_size": [None, 2, "1"],
        "out_channels": [[64], 16],
        "joint_attention_dim": [None],
        "pooled_projection_dim": [{}],
    },
    "vae": {
        "scaling_factor": [0, 0.0, None, "0.3611", NAN, INF, [0.3611]],
        "shift_factor": ["0.1159", NAN, [0.1]],
        "block_out_channels": [None, [], 32, [32, "32"], [32, 32, 64], [33, 32, 64, 128]],
        "down_block_types": [None, "DownEncoderBlock2D", ["DownEncoderBlock2D"], [1, 2, 3, 4]],
        "up_block_types": [["UpDecoderBlock2D"] * 3 + ["AttnUpDecoderBlock2D"]],
        "norm_num_groups": [0, None],
        "act_fn": [None, ["silu"], "relu"],
        "in_channels": [4, None],
        "out_channels": [1],
        "layers_per_block": [0, 1.5],
        "latent_channels": ["16"],
        "use_quant_conv": ["no", None],
    },
    "text_encoder": {
        "hidden_size": ["128", None, 128.0, 100],
        "num_attention_heads": [0, 8],
        "num_hidden_layers": [None, -1],
        "hidden_act": [["quick_gelu"], None, "relu"],
        "eos_token_id": [None, [2], -1],
        "layer_norm_eps": [None, "1e-5", NAN],
        "vocab_size": ["669"],
        "max_position_embeddings": [0],
    },
    "text_encoder_2": {
        "d_model": [None, "128"],
        "d_kv": [0, 16],
        "num_heads": [[4]],
        "feed_forward_proj": [7, None],
        "dense_act_fn": [{}, "tanh"],
        "relative_attention_num_buckets": [0, 2],
        "relative_attention_max_distance": [8],
        "layer_norm_epsilon": ["1e-6"],
    },
}
CASES = [
    (*place, value)
    for place in ((c, f) for c, fields in WRONG.items() for f in fields)
    for value in WRONG[place[0]][place[1]]
]


@pytest.mark.parametrize("component,field,value", CASES, ids=str)
def test_a_wrong_field_is_named(component, field, value):
    kind, read = COMPONENTS[component]
    config = CHECKPOINT.config(component, kind)
    read(config)
    with pytest.raises(CheckpointError) as error:
        read(config | {field: value})
    assert f"{component}/config.json" in str(error.value) and field in str(error.value)


@pytest.mark.parametrize("component,kind", [(name, kind) for name, (kind, _) in COMPONENTS.items()])
@pytest.mark.parametrize(
    "field,value", [("architectures", "X"), ("_class_name", ["X"]), ("quantization_config", {"bits": 4})]
)
def test_a_config_of_another_kind(tmp_path, component, kind, field, value):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    config = CHECKPOINT.config(component, kind) | {field: value}
    (tmp_path / component / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"{component}/config.json.* {field}|{field} is"):
        Checkpoint(tmp_path).config(component, kind)


def scheduler_of(folder, **fields):
    (folder / "scheduler_config.json").write_text(json.dumps({"use_dynamic_shifting": True, "shift": 3.0} | fields))
    return load_scheduler(folder)


class TestScheduler:
    @pytest.mark.parametrize(
        "field,value",
        [
            ("_class_name", "DDIMScheduler"),
            ("_class_name", None),
            ("num_train_timesteps", 500),
            ("num_train_timesteps", "1000"),
            ("stochastic_sampling", True),
            ("stochastic_sampling", "false"),
            ("use_flow_sigmas", True),
            ("shift", None),
            ("shift", "3"),
            ("shift", NAN),
            ("base_shift", None),
            ("max_shift", [1.15]),
            ("max_image_seq_len", 1.5),
            ("time_shift_type", "cubic"),
            ("time_shift_type", None),
            ("shift_terminal", True),
            ("use_karras_sigmas", 1),
        ],
        ids=str,
    )
    def test_what_is_not_done_is_named(self, tmp_path, field, value):
        with pytest.raises(CheckpointError, match="scheduler_config.json") as error:
            scheduler_of(tmp_path, **{field: value})
        assert field in str(error.value)

    @pytest.mark.parametrize("fields", [{"base_image_seq_len": 4096}, {"max_shift": 1e6}], ids=str)
    def test_no_schedule(self, tmp_path, fields):
        with pytest.raises(CheckpointError, match="scheduler_config.json gives no schedule"):
            scheduler_of(tmp_path, **fields)

    @pytest.mark.parametrize("text", ['"black-forest-labs/FLUX.1-Kontext-dev"', '["a"]', "null", "7"])
    def test_no_object(self, tmp_path, text):
        """A name there is no place to look a scheduler up."""
        (tmp_path / "scheduler_config.json").write_text(text)
        with pytest.raises(CheckpointError, match="scheduler_config.json holds .* where an object with fields belongs"):
            load_scheduler(tmp_path)

    def test_one_step_that_is_no_number(self, tmp_path):
        scheduler = scheduler_of(tmp_path, shift_terminal=0.02)
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="no numbers for 1 steps"):
            sigma_schedule(scheduler, steps=1, image_tokens=4096)

    def test_levels_below_zero(self, tmp_path):
        fields = {"base_shift": 0.1, "max_shift": 3.0, "base_image_seq_len": 1000}
        few = {"steps": 4, "image_tokens": 16}
        assert all(0 <= level <= 1 for level in sigma_schedule(scheduler_of(tmp_path, **fields), **few))
        with pytest.raises(ValueError, match="negative noise levels for 16 tokens"):
            sigma_schedule(scheduler_of(tmp_path, time_shift_type="linear", **fields), **few)

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "use_dynamic_shifting": st.booleans(),
                "shift": st.sampled_from([1.0, 3, 0.5]),
                "base_shift": st.floats(0.1, 1),
                "max_shift": st.floats(0.5, 3),
                "base_image_seq_len": st.integers(1, 1000),
                "max_image_seq_len": st.integers(1001, 9000),
                "shift_terminal": st.sampled_from([None, 0.02, 0.3]),
                "time_shift_type": st.sampled_from(["linear", "exponential"]),
                "invert_sigmas": st.booleans(),
            },
        ),
        st.sampled_from([None, "use_karras_sigmas", "use_exponential_sigmas"]),
        st.integers(2, 30),
        st.integers(1, 6000),
    )
    def test_all_else_is_as_in_diffusers(self, tmp_path_factory, fields, spacing, steps, tokens):
        """Also the times that its transformer would see: 1000 times the levels."""
        fields |= {spacing: True, "shift_terminal": None} if spacing else {}
        theirs = FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, "shift": 3.0} | fields)
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(tokens, *(theirs.config[name] for name in names))
        assume(mu > 0)
        levels = sigma_schedule(scheduler_of(tmp_path_factory.mktemp("scheduler"), **fields), steps, tokens)
        theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        assert np.allclose(levels, theirs.sigmas, rtol=1e-6, atol=1e-7)
        assert np.allclose(1000 * np.array(levels[:-1]), theirs.timesteps, rtol=1e-5)
