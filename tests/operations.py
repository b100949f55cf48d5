"""What a computation asks of the device: run on the `meta` device, where nothing is computed, it is told operation by operation.

There a value that the host reads raises, and branches on the device's type take the accelerator's way.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Names of the operations on tensors of the device, `launched`, and of the copies to it for which the host would wait, `waits`.

    Views are none: they launch nothing. Neither is what the host computes for itself.
    """

    def __init__(self, device: str = "meta"):
        super().__init__()
        self.device, self.launched, self.waits = device, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        on_device = [tensor.device.type == self.device for tensor in tensors]
        if any(on_device) and not is_view(func):
            self.launched.append(str(func))
            if func in COPIES and not all(on_device) and not is_asynchronous(func, args, kwargs or {}):
                self.waits.append(f"{func} of {[tuple(tensor.shape) for tensor in tensors]}")
        return result


COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def is_asynchronous(func, args, kwargs: dict) -> bool:
    return kwargs.get("non_blocking", False) or (func is torch.ops.aten.copy_.default and len(args) > 2 and args[2])


def is_view(func) -> bool:
    """Whether the result is a view of an argument, or memory that is not filled."""
    returns = [value.alias_info for value in func._schema.returns]
    is_alias = bool(returns) and all(alias is not None and not alias.is_write for alias in returns)
    return is_alias or "empty" in str(func) or func is torch.ops.aten.detach.default
