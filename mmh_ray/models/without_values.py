"""Builds a network without memory for its weights: to learn its size, or to load a state into it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialValues(TorchFunctionMode):
    """Skips :mod:`torch.nn.init`: on the meta device it would fill nothing, and import PyTorch's compiler for that."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Give the tensors of modules built in the block a shape and no memory, on PyTorch's meta device.

    ``load_state_dict(state, assign=True)`` replaces them by real ones.
    """
    with torch.device("meta"), _NoInitialValues():
        yield
