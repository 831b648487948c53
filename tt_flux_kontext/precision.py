"""Precision policies: which model's weights get which number format, and how exactly the matrix engine multiplies."""

from dataclasses import dataclass

from tt_flux_kontext.backend import ttnn


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Of one model. Activations, norms, biases, embeddings and convolutions are bfloat16 in all of them.

    Attributes:
        linear_weights: TT-NN dtype of the matrices of linear layers.
        math_fidelity: passes of the matrix engine over a bfloat16 mantissa.
    """

    linear_weights: str
    math_fidelity: str

    def compute_config(self, device: "ttnn.MeshDevice"):
        """For matmuls, convolutions and attention."""
        return _kernel_config(device, self.math_fidelity)

    def norm_config(self, device: "ttnn.MeshDevice"):
        """For norms: they wait for memory, so that full products cost nothing."""
        return _kernel_config(device, max(self.math_fidelity, FULL.math_fidelity))


def _kernel_config(device: "ttnn.MeshDevice", math_fidelity: str):
    """Sums are kept in float32."""
    return ttnn.init_device_compute_kernel_config(
        device.arch(),
        math_fidelity=getattr(ttnn.MathFidelity, math_fidelity),
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )


# HiFi4 multiplies exactly. It is what TT-NN's kernels were tried with (tests/silicon), and no policy has it: on
# Wormhole, with sums in float32, a result now and then is off by a power of two (tt-metal issue 38306; rarer at lower
# fidelity).
EXACT = Precision(linear_weights="bfloat16", math_fidelity="HiFi4")
# HiFi3 leaves out the product of the operands' lowest bits, 1e-4 of a sum, and takes three quarters of the time.
FULL = Precision(linear_weights="bfloat16", math_fidelity="HiFi3")
# HiFi2 drops the lowest bit of bfloat16 activations, a bias of 0.3 % in every product, of 0.8 % in attention. Beside
# the error of bfloat8_b weights it doesn't matter. Attention in HiFi3 would take 15 % more of a step, and whole edits
# don't show it: their median error is 0.34 % with it and 0.36 % without.
COMPACT = Precision(linear_weights="bfloat8_b", math_fidelity="HiFi2")


@dataclass(frozen=True)
class Policy:
    """What users call by name: the models of `residency.Models` that are not FULL, and what they are."""

    name: str
    models: dict[str, Precision]

    def of(self, model: str) -> Precision:
        return self.models.get(model, FULL)


# The transformer is most of an edit's memory and nearly all of its time; the others run once an edit and take turns on
# the device. CLIP is too small to gain anything by rounding, and an edit feels it: see `reference.sensitivity`.
BF16 = Policy("bf16", {})
BFP8_MIXED = Policy("bfp8_mixed", {"transformer": COMPACT})
BFP8 = Policy("bfp8", dict.fromkeys(("t5", "vae encoder", "modulation", "transformer", "vae decoder"), COMPACT))

PRECISIONS = {policy.name: policy for policy in (BF16, BFP8_MIXED, BFP8)}
"""From the most accurate to the smallest."""


def policy(name: str | None) -> Policy | None:
    """The policy of that name; `ValueError` where there is none, None for None."""
    if name is not None and name not in PRECISIONS:
        raise ValueError(f"Unknown precision '{name}': it is one of {', '.join(PRECISIONS)}.")
    return PRECISIONS.get(name)
