"""Models whose work on the device begins with one tensor from the host."""

from tt_flux_kontext.backend import ttnn


class FromHost:
    """A call is `host_input`, then `on_device`, which may be replayed as a trace, with another input in the same place.

    So `on_device` works with nothing but the input, parameters, and what the model keeps for inputs of its form.
    """

    device: "ttnn.MeshDevice"

    def host_input(self, *arguments) -> "tuple[ttnn.Tensor, object]":
        """What arguments are to the device, still on the host, and their form: of equal ones the same object."""
        raise NotImplementedError

    def on_device(self, x: "ttnn.Tensor", form):
        """What the model makes of an input, which is on the device."""
        raise NotImplementedError

    def __call__(self, *arguments):
        """What the model makes of the arguments of `host_input`."""
        x, form = self.host_input(*arguments)
        return self.on_device(ttnn.to_device(x, self.device), form)
