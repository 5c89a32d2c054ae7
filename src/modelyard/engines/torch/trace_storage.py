"""Follows every storage from its first use to its end, in a run that computes or in one that only pretends.

`StorageTracker` sees each ATen operation below autograd, in forward and in backward. A storage counts once,
however many tensors view it, from the operation that returned it until the last tensor, saved ones included,
has let it go. What an operation allocates for itself and frees before it returns is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modelyard.engines.torch.trace_pretend import Pretender, tensors_in

Phase = Literal["forward", "recompute", "backward"]
# What ``torch.tensor`` ends with.
_LIFTS = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}


@dataclass(eq=False)
class Storage:
    """One storage. ``operation`` returned it first; ``saved``: it outlived the forward pass that made it."""

    number: int
    num_bytes: int
    operation: str
    is_input: bool
    saved: bool = False
    alive: weakref.ref[Any] | None = None


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that records `events`: (storage, bytes by which it grew), negative when it was freed.

    pretender: pretends the operations; None to compute them.
    """

    def __init__(self, pretender: Pretender | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pretender = pretender
        self.events: list[tuple[Storage, int]] = []
        self._phase: Phase = "forward"
        self._young: list[Storage] = []
        self._alive: dict[int, Storage] = {}
        self._num_storages = 0

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
        pretender = self.pretender
        out = func(*args, **kwargs) if pretender is None else pretender.run(func, args, kwargs)
        for tensor in tensors_in(out):
            if pretender is None or not pretender.stands_for_real(tensor.untyped_storage()):
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
