"""Refusals in the manner of TT-NN: a RuntimeError that names the operation, the fault and the values."""


def check(condition: bool, op: str, message: str) -> None:
    """Raise RuntimeError ``TT_FATAL: op: message`` unless ``condition`` holds."""
    if not condition:
        raise RuntimeError(f"TT_FATAL: {op}: {message}")


def check_no_capture(op: str, device, what: str) -> None:
    """Refuse what only the host can do, while a trace is captured on the device."""
    check(device is None or device.capture is None, op, f"{what} not supported during trace capture")


def check_operands(op: str, **tensors) -> None:
    """Refuse operands on the host, deallocated, or on different devices. None stands for an absent operand.

    TT-NN itself reads freed memory or segfaults in some of these cases.
    """
    devices = set()
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not hasattr(tensor, "storage_type"):
            raise TypeError(f"{op}(): {name} must be a ttnn.Tensor, got {type(tensor).__name__}")
        check(
            tensor.storage_type().name == "DEVICE",
            op,
            f"{name} must be on device, got a host tensor {describe(tensor)}",
        )
        check(tensor.is_allocated(), op, f"{name} is not allocated: {describe(tensor)} was deallocated")
        devices.add(tensor.device())
    check(len(devices) <= 1, op, "operands live on different devices")


def check_layout(op: str, layout, **tensors) -> None:
    """Refuse operands that are not in ``layout``."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check(tensor.layout is layout, op, f"{name} must be in {layout}, got {tensor.layout} {describe(tensor)}")


def check_dtype(op: str, dtypes, **tensors) -> None:
    """Refuse operands whose dtype is not among ``dtypes``."""
    for name, tensor in tensors.items():
        if tensor is not None:
            allowed = ", ".join(dtype.name for dtype in dtypes)
            check(tensor.dtype in dtypes, op, f"{name} must be {allowed}, got {tensor.dtype.name} {describe(tensor)}")


def check_rank(op: str, rank: int, **tensors) -> None:
    """Refuse operands that do not have ``rank`` dimensions."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check(len(tensor.shape) == rank, op, f"{name} must have rank {rank}, got {describe(tensor)}")


def check_padding(op: str, **tensors) -> None:
    """Refuse operands whose padding may hold anything, for a kernel that it leaks from into values."""
    for name, tensor in tensors.items():
        if tensor is not None:
            where = f"the padding of {name} {describe(tensor)} may be infinite, as conv2d leaves it"
            check(not tensor.unknown_padding, op, f"{where}, and leak: call fill_implicit_tile_padding first")


def describe(tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype.name}"
