"""A stored vector and the operation behind it, so that any device can be held against TT-NN's own kernels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reference.state_dict import StateDict
from tests.silicon.rules import Rule
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.weights import Weights, upload
from tt_flux_kontext.precision import EXACT, Precision

VECTORS = Path(__file__).with_name("vectors")


# In bfp8 the vectors were made with HiFi2 throughout, where a policy has more for attention today.
COMPACT = Precision(linear_weights="bfloat8_b", math_fidelity="HiFi2")


@dataclass(frozen=True)
class Bench:
    """An open device, and how a case's tensors get there."""

    device: "ttnn.MeshDevice"

    def put(self, x: torch.Tensor, dtype: str = "bfloat16", *, tiled: bool = True) -> "ttnn.Tensor":
        return upload(x, self.device, getattr(ttnn, dtype), tiled=tiled)

    def weights(self, tensors: dict[str, torch.Tensor], precision: Precision = EXACT) -> Weights:
        return Weights(StateDict(tensors), precision, Parallel(Mesh(self.device)))


# Of a case: gets the bench, the stored inputs by name and the case's options; yields each output, on the device or
# brought from it, with what torch computes in float32.
Operation = Callable[..., Iterator[tuple[object, torch.Tensor]]]


@dataclass(frozen=True)
class Case:
    """The operation behind the vector `name`, and the rule that its result must meet."""

    name: str
    rule: Rule
    operation: Operation
    options: dict[str, object]

    def run(self, bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
        """Result and reference, float32, all outputs flat in a row."""
        inputs = {key[3:]: x for key, x in load(self.name).items() if key.startswith("in_")}
        with torch.no_grad():
            outputs = [(host(out), reference) for out, reference in self.operation(bench, **inputs, **self.options)]
        for out, reference in outputs:
            assert tuple(out.shape) == tuple(reference.shape), f"{tuple(out.shape)} is not {tuple(reference.shape)}"
        return flat(out for out, _ in outputs), flat(reference for _, reference in outputs)

    def kernel(self) -> torch.Tensor | None:
        """What the kernels gave, in the form of `run`; None where they have not run this."""
        return flat(x for key, x in load(self.name).items() if key.startswith("out")) if stored(self.name) else None


CASES: dict[str, Case] = {}


def cases(rule: Rule, **vectors: dict[str, object]) -> Callable[[Operation], Operation]:
    """Decorates an operation with the vectors that it stands behind, and the options of each."""

    def register(operation: Operation) -> Operation:
        CASES.update((name, Case(name, rule, operation, options)) for name, options in vectors.items())
        return operation

    return register


def stored(name: str) -> bool:
    return (VECTORS / f"{name}.npz").exists()


def load(name: str) -> dict[str, torch.Tensor]:
    """Arrays of a vector by name, in float32 (int64 for ids); none where there is no such vector."""
    if not stored(name):
        return {}
    with np.load(VECTORS / f"{name}.npz") as arrays:
        return {key: _decoded(arrays[key]) for key in arrays}


def load_picture(name: str) -> torch.Tensor:
    """A stored picture, float32 [height, width, 3] from 0 to 255."""
    return torch.from_numpy(np.array(Image.open(VECTORS / f"{name}.png"), dtype=np.float32))


def _decoded(array: np.ndarray) -> torch.Tensor:
    """Unsigned integers are the bits of bfloat16, signed ones ids."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(array).long() if array.dtype == np.int16 else torch.from_numpy(array)


def host(x) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else ttnn.to_torch(x).float()


def flat(tensors: Iterator[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
