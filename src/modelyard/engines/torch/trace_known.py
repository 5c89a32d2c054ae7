"""Values that are known in a run that only pretends: of large masks, too, without computing the masks.

Upstream's code builds a mask of (B, 1, T, T) and looks at one row of it, or at nothing. `Lazy` remembers how such a
tensor would be computed, element by element, and computes the part that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
# Known tensors have so many elements at most; larger ones are lazy.
LARGEST_KNOWN = 2**22


@dataclass(frozen=True)
class Lazy:
    """``func(*args, **kwargs)``, an operation on single elements, broadcast to ``full``.

    kept: which dimensions of ``full`` are there to see; the others have one element and were selected away.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    full: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.full[dim] for dim in self.kept)

    def row(self, dim: int, index: int) -> Lazy:
        """The same with only `index` left of the dimension `dim`."""
        dim = self.kept[dim]

        def cut(value: Any) -> Any:
            if not isinstance(value, (Tensor, Lazy)):
                return value
            own = dim - len(self.full) + len(value.shape)  # broadcasting counts from the last dimension
            if own < 0:
                return value
            at = index if value.shape[own] > 1 else 0
            return value.row(own, at) if isinstance(value, Lazy) else value.narrow(own, at, 1)

        full = (*self.full[:dim], 1, *self.full[dim + 1 :])
        return replace(self, args=tuple(map(cut, self.args)), full=full)

    def select(self, dim: int, index: int) -> Lazy:
        dim, index = dim % len(self.kept), index % self.shape[dim]
        return replace(self.row(dim, index), kept=(*self.kept[:dim], *self.kept[dim + 1 :]))

    def compute(self) -> Tensor:
        args = [value.compute() if isinstance(value, Lazy) else value for value in self.args]
        result = args[0] if self.func is aten.expand.default else self.func(*args, **self.kwargs)
        return torch.as_tensor(result).expand(self.full).clone().view(self.shape)


Value = Tensor | Lazy


def is_whole(value: Value) -> bool:
    """Whether the value is a tensor, or one that may become it."""
    return isinstance(value, Tensor) or math.prod(value.shape) <= LARGEST_KNOWN


def value_of_result(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], shape: tuple[int, ...]
) -> Value | None:
    """What `func` gives, in `shape`, for known values in the place of tensors; None where that takes too much.

    An operation in place changes its (whole) value.
    """
    lazy = any(isinstance(value, Lazy) for value in args)
    if not lazy and math.prod(shape) <= LARGEST_KNOWN:
        result = func(*args, **kwargs)
        return result if isinstance(result, Tensor) else None
    elementwise = torch.Tag.pointwise in func.tags and not func._schema.is_mutable
    if elementwise or func is aten.expand.default:
        own = tuple(_copied(value) if isinstance(value, Tensor) else value for value in args)
        value = Lazy(func, own, kwargs, shape, tuple(range(len(shape))))
    elif lazy and func is aten.select.int:
        value = args[0].select(args[1], args[2])
    elif lazy and func in _SAME and args[0].shape == shape:
        value = args[0]
    else:
        return None
    return value.compute() if is_whole(value) else value


def with_values(value: Any, value_of: Callable[[Tensor], Value | None]) -> Any:
    """`value` with known values in the place of tensors. Raises KeyError where a tensor has none."""
    if isinstance(value, Tensor):
        known = value_of(value)
        if known is None:
            raise KeyError
        return known
    if isinstance(value, (list, tuple)):
        return type(value)(with_values(each, value_of) for each in value)
    return value


def _copied(tensor: Tensor) -> Tensor:
    """A copy, so that the tensor itself lives no longer than in training; repeated elements stay one in memory."""
    repeated = [dim for dim, stride in enumerate(tensor.stride()) if stride == 0 and tensor.shape[dim] > 1]
    compact = tensor
    for dim in repeated:
        compact = compact.narrow(dim, 0, 1)
    return compact.clone().expand(tensor.shape)


_SAME = {aten.detach.default, aten.alias.default, aten.slice.Tensor}
