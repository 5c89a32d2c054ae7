"""Follows every storage from its first use to its end, in a run that computes or in one that only pretends.

`StorageTracker` sees each ATen operation below autograd, in forward and in backward. A storage counts once,
however many tensors view it, from the operation that returned it until the last tensor, saved ones included,
has let it go. What an operation allocates for itself and frees before it returns is not seen.

The pretending run keeps two kinds of tensors. Weights and everything computed from them are **fake**: they have a shape,
a type and a storage without bytes. Whatever was computed from the batch and from constants alone, such as masks,
positions and counts, is **known**: small real tensors. So code that asks for a number (how many global tokens, is
anything padded) gets the true one and takes the way that it will take in training.
"""

from __future__ import annotations

import math
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode

from modelyard.errors import MachineError

aten = torch.ops.aten
Phase = Literal["forward", "recompute", "backward"]

# Known tensors have so many elements at most: masks of (B, T, T) on short texts fit, larger ones become fake.
LARGEST_KNOWN = 2**22
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


@dataclass(eq=False)
class Storage:
    """One storage. ``operation`` returned it first; ``saved``: it outlived the forward pass that made it."""

    number: int
    num_bytes: int
    operation: str
    is_input: bool
    saved: bool = False
    alive: weakref.ref[Any] | None = None


class StorageTracker(TorchDispatchMode):
    """A dispatch mode that records `events`: (storage, bytes by which it grew), negative when it was freed.

    fake: pretend under this mode, or None to compute.
    """

    def __init__(self, fake: FakeTensorMode | None) -> None:
        super().__init__()
        self.fake = fake
        self.events: list[tuple[Storage, int]] = []
        self._phase: Phase = "forward"
        self._young: list[Storage] = []
        self._alive: dict[int, Storage] = {}
        self._num_storages = 0
        # Of real tensors in a pretending run, by address: storages that took in computed values, and the fake
        # storages that stand for real ones.
        self._unknown: dict[int, weakref.ref[Any]] = {}
        self._twins: dict[int, weakref.ref[Any]] = {}

    def alive(self) -> list[Storage]:
        """What is alive now, the oldest first."""
        return list(self._alive.values())

    def storage_of(self, tensor: Tensor) -> Storage:
        """The storage of a tensor, first seen now or earlier."""
        return self._see(tensor, "")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._follow_phase()
        kwargs = kwargs or {}
        out = func(*args, **kwargs) if self.fake is None else self._pretend(func, args, kwargs)
        for tensor in _tensors(out):
            if tensor.untyped_storage()._cdata not in self._twins:
                self._see(tensor, func)
        return out

    # --- what is alive ------------------------------------------------------------------------------

    def _see(self, tensor: Tensor, func: Any) -> Storage:
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is not None:
            if num_bytes != known.num_bytes:  # an `out` that was resized
                self.events.append((known, num_bytes - known.num_bytes))
                known.num_bytes = num_bytes
            return known
        record = Storage(self._num_storages, num_bytes, str(func), func in _LIFTS)
        record.alive = weakref.ref(storage, self._forget(key))
        self._num_storages += 1
        self._alive[key] = record
        self.events.append((record, num_bytes))
        if self._phase != "backward":
            self._young.append(record)
        return record

    def _forget(self, key: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            record = self._alive.pop(key)
            self.events.append((record, -record.num_bytes))
            record.alive = None

        return gone

    def _follow_phase(self) -> None:
        """Set the phase; what a forward pass leaves behind when backward begins was saved for it."""
        phase: Phase = "forward"
        if torch._C._current_graph_task_id() != -1:
            # Checkpointing computes a part again within backward, and catches what that part saves by hooks.
            saving = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
            phase = "recompute" if saving else "backward"
        if phase != self._phase and phase == "backward":
            for record in self._young:
                record.saved = record.saved or record.alive is not None
            self._young.clear()
        self._phase = phase

    # --- pretending ---------------------------------------------------------------------------------

    def _pretend(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        given = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
        real = [tensor for tensor in given if not isinstance(tensor, FakeTensor)]
        if len(real) == len(given) and self._stays_known(func, real, args, kwargs):
            return func(*args, **kwargs)
        if func in _INDEXED:
            args = (args[0], self._positions(args[1]), *args[2:])
        if not real:
            return self._run_fake(func, args, kwargs)
        out = self._run_fake(func, self._faked(args), {name: self._faked(value) for name, value in kwargs.items()})
        return self._with_written(func, args, kwargs, out)

    def _stays_known(self, func: Any, real: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if real:
            return _largest(real) <= LARGEST_KNOWN and not any(self._is_unknown(tensor) for tensor in real)
        if func in _CONSTANTS or func in _FILLED:
            like = self._run_fake(func, args, kwargs)
            known = func in _CONSTANTS or like.numel() == 1 or not like.dtype.is_floating_point
            return bool(known and like.numel() <= LARGEST_KNOWN)
        return False

    def _is_unknown(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._unknown

    def _with_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Real tensors that took in computed values are known no more; an operation in place returns its own."""
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in _tensors(value):
                if not isinstance(tensor, FakeTensor):
                    storage = tensor.untyped_storage()
                    self._unknown[storage._cdata] = _until_gone(storage, self._unknown)
            if isinstance(value, Tensor) and isinstance(out, Tensor):
                out = value
        return out

    def _faked(self, value: Any) -> Any:
        assert self.fake is not None
        if isinstance(value, Tensor):
            if isinstance(value, FakeTensor):
                return value
            twin = self.fake.from_tensor(value)
            storage = twin.untyped_storage()
            if storage._cdata not in self._twins:
                self._twins[storage._cdata] = _until_gone(storage, self._twins)
            return twin
        if isinstance(value, (list, tuple)):
            return type(value)(self._faked(each) for each in value)
        return value

    def _positions(self, indices: Any) -> list[Any]:
        """Known masks as the positions that they select: what the operation itself does first."""
        whole: list[Any] = []
        for index in indices:
            is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
            if is_mask and not isinstance(index, FakeTensor) and not self._is_unknown(index):
                whole.extend(index.nonzero(as_tuple=True))
            else:
                whole.append(index)
        return whole

    def _run_fake(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.fake is not None
        try:
            with self.fake:
                return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UntraceableError(str(func), _where(), "needs the values of a computed tensor") from error
        except (UnsupportedFakeTensorException, UnsupportedOperatorException, NotImplementedError) as error:
            raise UntraceableError(str(func), _where(), f"has no version without data ({error})") from error


_LIFTS = {aten.lift_fresh.default, aten.lift_fresh_copy.default}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def _largest(tensors: list[Tensor]) -> int:
    """Elements of what these broadcast to, or of the largest of them."""
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    except RuntimeError:
        return max(tensor.numel() for tensor in tensors)


def _until_gone(storage: Any, held: dict[int, Any]) -> weakref.ref[Any]:
    """A reference for `held`, under the storage's address, that leaves it when the storage dies."""
    key = storage._cdata
    return weakref.ref(storage, lambda _: held.pop(key, None))


def _where() -> str:
    """The innermost line of Python that is not PyTorch's own."""
    own = (str(Path(torch.__file__).parent), __file__)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(own):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "PyTorch"
