"""Operations that only pretend: a step without its weights, its activations and its time.

Weights and everything computed from them are **fake**: they have a shape, a type and a storage without bytes. Whatever
was computed from the batch and from constants alone, such as masks, positions and counts, is **known**. So code that
asks for a number (how many global tokens, is anything padded) gets the true one and takes the way that it will take in
training. Small known tensors are real ones; a large one is fake with its value beside it (`trace_known.Lazy`).
"""

from __future__ import annotations

import math
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from modelyard.engines.torch.trace_known import LARGEST_KNOWN, Value, value_of_result, with_values
from modelyard.errors import MachineError

aten = torch.ops.aten

# Factories whose values are constants, and those that may as well make room for results: the latter are known for
# whole numbers, which count and mark, and for single numbers.
_CONSTANTS = {
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.scalar_tensor.default,
}
_FILLED = {aten.zeros.default, aten.ones.default, aten.full.default, aten.randint.default, aten.randint.low}
_REWRITES = {
    aten.copy_.default,
    aten.fill_.Scalar,
    aten.zero_.default,
    aten.random_.default,
    aten.random_.to,
    getattr(aten.random_, "from"),
}
_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
    aten._index_put_impl_.default,
}


class UntraceableError(MachineError):
    """The model's code asks for a value that only a real run has. ``operation``: the ATen operation that did."""

    def __init__(self, operation: str, where: str, reason: str) -> None:
        super().__init__(
            f"the memory of this model cannot be traced without running it: {operation} in {where} {reason}",
            hint="measure it with one real step on this device",
        )
        self.operation = operation
        self.where = where


class Pretender:
    """Runs one ATen operation after the other without computing it."""

    def __init__(self) -> None:
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        # By address of the storage. Real tensors that took in computed values; the fake storages that stand for real
        # ones; and the values of fake tensors, by (offset, shape, strides).
        self._unknown: dict[int, weakref.ref[Any]] = {}
        self._twins: dict[int, weakref.ref[Any]] = {}
        self._values: dict[int, dict[Any, Value]] = {}
        self._ends: dict[int, weakref.ref[Any]] = {}

    def parameters_of(self, model: nn.Module) -> None:
        """Parameters that began as constants (``torch.tensor(1.0)``) will not stay what they are."""
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not isinstance(parameter, FakeTensor):
                    fake = self.fake.from_tensor(parameter.detach())
                    module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)

    def stands_for_real(self, storage: Any) -> bool:
        """Whether this fake storage is the double of a real one, which is counted already."""
        return storage._cdata in self._twins

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func` returns: real where all is known and small, else fake. Raises UntraceableError."""
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        given = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
        if not given:
            return self._make(func, args, kwargs)
        real = [tensor for tensor in given if not isinstance(tensor, FakeTensor)]
        if len(real) == len(given) and _largest(real) <= LARGEST_KNOWN and not any(map(self._is_unknown, real)):
            return func(*args, **kwargs)
        indexed = (args[0], self._positions(args[1]), *args[2:]) if func in _INDEXED else args
        if _only_writes(func, args, kwargs):
            out = kwargs.get("out", args[0])
        elif not real:
            out = self._run_fake(func, indexed, kwargs)
        else:
            faked = {name: self._faked(value) for name, value in kwargs.items()}
            out = self._run_fake(func, self._faked(indexed), faked)
        return self._with_value(func, args, kwargs, out) if real or self._values else out

    def _make(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Tensors from nothing: constants and small marks are known, room for results is not."""
        out = self._run_fake(func, args, kwargs)
        if func not in _CONSTANTS and func not in _FILLED:
            return out
        known = func in _CONSTANTS or out.numel() == 1 or not out.dtype.is_floating_point
        return func(*args, **kwargs) if known and out.numel() <= LARGEST_KNOWN else out

    def _value_of(self, tensor: Tensor) -> Value | None:
        key = tensor.untyped_storage()._cdata
        if isinstance(tensor, FakeTensor):
            return self._values.get(key, {}).get(_place(tensor))
        return None if key in self._unknown else tensor

    def _is_unknown(self, real: Tensor) -> bool:
        return real.untyped_storage()._cdata in self._unknown

    def _with_value(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """The result of a fake operation, known where everything that it was computed from is."""
        value = None
        if isinstance(out, Tensor):
            try:
                known = with_values(args, self._value_of), with_values(kwargs, self._value_of)
                value = value_of_result(func, *known, tuple(out.shape))
            except KeyError:
                pass  # something is not known
        arguments = func._schema.arguments
        written = [
            (args[place] if place < len(args) else kwargs.get(argument.name))
            for place, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in tensors_in(written):
            self._forget(tensor, but_itself=value is not None)
        if len(written) == 1 and isinstance(written[0], Tensor) and isinstance(out, Tensor):
            out = written[0]
        if value is None or not isinstance(out, FakeTensor):
            return out
        if isinstance(value, Tensor) and all(argument.alias_info is None for argument in arguments):
            return value
        self._remember(out, value)
        return out

    def _remember(self, tensor: Tensor, value: Value) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._values.setdefault(key, {})[_place(tensor)] = value
        if key not in self._ends:
            self._ends[key] = until_gone(storage, self._ends, self._values)

    def _forget(self, tensor: Tensor, *, but_itself: bool) -> None:
        """Something was written into `tensor`: what was known of its storage, other views of it too, may be wrong."""
        storage = tensor.untyped_storage()
        if isinstance(tensor, FakeTensor):
            self._values.pop(storage._cdata, None)
        elif not but_itself:
            self._unknown[storage._cdata] = until_gone(storage, self._unknown)

    def _faked(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if isinstance(value, FakeTensor):
                return value
            twin = self.fake.from_tensor(value)
            storage = twin.untyped_storage()
            if storage._cdata not in self._twins:
                self._twins[storage._cdata] = until_gone(storage, self._twins)
            return twin
        if isinstance(value, (list, tuple)):
            return type(value)(self._faked(each) for each in value)
        return value

    def _positions(self, indices: Any) -> list[Any]:
        """Known masks as the positions that they select: what the operation itself does first."""
        whole: list[Any] = []
        for index in indices:
            mask = self._value_of(index) if isinstance(index, Tensor) and index.dtype == torch.bool else None
            whole.extend(mask.nonzero(as_tuple=True) if isinstance(mask, Tensor) else [index])
        return whole

    def _run_fake(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with self.fake:
                return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UntraceableError(str(func), _where(), "needs the values of a computed tensor") from error
        except (RuntimeError, NotImplementedError) as error:  # fake tensors' own errors are RuntimeErrors
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UntraceableError(str(func), _where(), f"fails without data: {reason}") from error


def _only_writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `func` fills a fake tensor that it then returns as it was, which needs no pretending."""
    if func in _REWRITES or (torch.Tag.pointwise in func.tags and func._schema.is_mutable):
        out = kwargs.get("out")
        if out is not None:  # a smaller one would be resized
            return isinstance(out, FakeTensor) and isinstance(args[0], Tensor) and out.shape == args[0].shape
        return isinstance(args[0], FakeTensor) and func._schema.arguments[0].alias_info is not None
    return False


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)


def _largest(tensors: list[Tensor]) -> int:
    """Elements of what these broadcast to, or of the largest of them."""
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return max(tensor.numel() for tensor in tensors)


def until_gone(storage: Any, *held: dict[int, Any]) -> weakref.ref[Any]:
    """A reference that takes the storage's address out of `held` when the storage dies."""
    key = storage._cdata

    def gone(_: Any) -> None:
        for each in held:
            each.pop(key, None)

    return weakref.ref(storage, gone)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())


def _where() -> str:
    """The innermost line of Python that is neither PyTorch's nor the tracer's."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent / "trace"))
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(own):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "PyTorch"
