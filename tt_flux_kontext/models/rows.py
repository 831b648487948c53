"""How the VAE's maps are split over chips: by rows, as a model's tokens are."""

import math

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Mesh, Parallel


class Rows:
    """Which rows of a map a chip has: `here` of them, on the first chip the first ones.

    Where a map's rows don't divide there is padding behind the last one, on the last chip or on several. Convolutions
    must find zeros there, as beyond the border of a map, and statistics must not count it: so it is zero wherever it
    might be seen, in every map that `cleared` or a product with `mask` has made.

    Args:
        height, width: of the whole map.
    """

    def __init__(self, parallel: Parallel, height: int = 0, width: int = 0, here: int = 0):
        self.parallel = parallel
        self.height, self.width, self.here = height, width, here
        self._masks: dict[int, ttnn.Tensor] = {}  # by rows of a chip; one of all sizes

    @classmethod
    def of(cls, parallel: Parallel, height: int, width: int, unit: int) -> "Rows":
        """Of a map whose chips shall each have a multiple of `unit` rows; on one chip, its height."""
        return cls(parallel, height, width, math.ceil(height / (unit * parallel.sp)) * unit)

    def resized(self, here: int) -> "Rows":
        """Of the map that is made of this one by a layer after which a chip has `here` rows."""
        if not self.here:  # of a map that each chip has whole
            return self
        other = Rows(self.parallel, self.height * here // self.here, self.width * here // self.here, here)
        other._masks = self._masks
        return other

    @property
    def all(self) -> int:
        """Rows of all chips, padding included."""
        return self.parallel.sp * self.here

    @property
    def padded(self) -> bool:
        return self.all > self.height

    @property
    def mask(self) -> "ttnn.Tensor | float":
        """To multiply values with: 1, or float32 [1, 1, positions of a chip, 1] that is 0 in padding."""
        if not self.padded:
            return 1.0
        if self.here not in self._masks:
            inside = torch.arange(self.all) < self.height
            positions = inside.float().repeat_interleave(self.width)[:, None]
            mask = self._tensor(positions, ttnn.float32, ttnn.TILE_LAYOUT)
            self._masks[self.here] = ttnn.to_device(mask, self.parallel.device)
        return self._masks[self.here]

    def cleared(self, values: "ttnn.Tensor", dtype: "ttnn.DataType | None" = None) -> "ttnn.Tensor":
        """Values with zeros in padding, of their own dtype or another."""
        if self.padded:
            return ttnn.multiply(values, self.mask, dtype=dtype)
        return values if dtype is None else ttnn.typecast(values, dtype)

    def on_host(self, x: torch.Tensor, dtype: "ttnn.DataType", *, tiled: bool = True, around: int = 0) -> "ttnn.Tensor":
        """A map [height, width, channels], to go to the device: [1, 1, positions, channels], with zeros in padding.

        `around`: rows that each chip has besides, above and below its own, zeros beyond the borders.
        """
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, around, around + self.all - self.height))
        parts = [x[first : first + self.here + 2 * around] for first in range(0, self.all, self.here)]
        return self._tensor(torch.cat(parts).flatten(0, 1), dtype, ttnn.TILE_LAYOUT if tiled else ttnn.ROW_MAJOR_LAYOUT)

    def fetch(self, values: "ttnn.Tensor") -> torch.Tensor:
        """The inverse of `on_host`, float32."""
        x = self.parallel.gather(values)
        return x[: self.height * self.width].view(self.height, self.width, -1)

    def gather(self, values: "ttnn.Tensor") -> "ttnn.Tensor":
        """[1, 1, positions, C] of all chips one below the other, without padding, on each of them."""
        values = self.parallel.all_gather_rows(values)
        if not self.padded:
            return values
        return ttnn.slice(values, [0, 0, 0, 0], [1, 1, self.height * self.width, values.shape[3]])

    def _tensor(self, x: torch.Tensor, dtype, layout) -> "ttnn.Tensor":
        mapper = self.parallel.mapper(self.parallel.sp_axis, 2)
        return ttnn.from_torch(x[None, None], dtype=dtype, layout=layout, mesh_mapper=mapper)


WHOLE = Rows(Parallel(Mesh(None)))
"""Of a map that each chip has whole."""
