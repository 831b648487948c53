"""Precision policies: which model's weights get which number format, and how exactly the matrix engine multiplies."""

from dataclasses import dataclass

from tt_flux_kontext.backend import ttnn


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Of one model. Activations, norms, biases, embeddings and convolutions are bfloat16 in all of them.

    Attributes:
        linear_weights: TT-NN dtype of the matrices of linear layers.
        math_fidelity: passes of the matrix engine over a bfloat16 mantissa; HiFi4 multiplies exactly.
    """

    linear_weights: str
    math_fidelity: str

    def compute_config(self, device: "ttnn.MeshDevice"):
        """For matmuls, convolutions and attention."""
        return _kernel_config(device, self.math_fidelity)

    def norm_config(self, device: "ttnn.MeshDevice"):
        """For norms: they wait for memory, so that exact products cost nothing."""
        return _kernel_config(device, "HiFi4")

    def attention_config(self, device: "ttnn.MeshDevice"):
        """For scaled dot-product attention: chunks that fit a Wormhole core's L1 up to heads of 128 features."""
        return ttnn.SDPAProgramConfig(
            compute_with_storage_grid_size=device.compute_with_storage_grid_size(),
            q_chunk_size=128,
            k_chunk_size=512,
            exp_approx_mode=False,
        )


def _kernel_config(device: "ttnn.MeshDevice", math_fidelity: str):
    """Sums are kept in float32."""
    return ttnn.init_device_compute_kernel_config(
        device.arch(),
        math_fidelity=getattr(ttnn.MathFidelity, math_fidelity),
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )


# HiFi2 would drop the lowest bit of bfloat16 activations, a bias of 0.3 % in every product. Beside the error of
# bfloat8_b weights it doesn't matter, and it is twice as fast.
EXACT = Precision(linear_weights="bfloat16", math_fidelity="HiFi4")
COMPACT = Precision(linear_weights="bfloat8_b", math_fidelity="HiFi2")


@dataclass(frozen=True)
class Policy:
    """What users call by name: the models of `residency.Models` that are not EXACT, and what they are."""

    name: str
    models: dict[str, Precision]

    def of(self, model: str) -> Precision:
        return self.models.get(model, EXACT)


# The transformer is most of an edit's memory and nearly all of its time; the others run once an edit and take turns on
# the device. CLIP is too small to gain anything by rounding, and an edit feels it: see `reference.sensitivity`.
BF16 = Policy("bf16", {})
BFP8_MIXED = Policy("bfp8_mixed", {"transformer": COMPACT})
BFP8 = Policy("bfp8", dict.fromkeys(("t5", "vae encoder", "modulation", "transformer", "vae decoder"), COMPACT))

PRECISIONS = {policy.name: policy for policy in (BF16, BFP8_MIXED, BFP8)}
"""From the most accurate to the smallest."""
