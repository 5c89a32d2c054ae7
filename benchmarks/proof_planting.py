"""Ways to make PyTorch compute something else for as long as a context is entered, for ``proof_faults.py``.

Each replaces a function of PyTorch, or of PyTorch's side of the proof; the product itself knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from modelyard.engines.torch import proof

Change = Callable[[torch.Tensor], torch.Tensor]
Plant = Callable[[], AbstractContextManager[Any]]


@contextmanager
def replaced(owner: Any, name: str, make_other: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, make_other(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def function(owner: Any, name: str, other: Callable[..., Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Calls of `owner.name` go to `other`, which is given the original first."""

    def make_other(original: Any) -> Any:
        return lambda *arguments, **named: other(original, *arguments, **named)

    return lambda: replaced(owner, name, make_other)


def weights_seen(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Any:
    """The forward pass is given other weights than the optimiser has."""
    return function(
        proof, "forward", lambda run, problem, weights, batch: run(problem, weights | change(weights), batch)
    )


def after_backward(change: Callable[[dict[str, torch.Tensor], int], None]) -> Any:
    """`change` is given the weights with their gradients, and the step from 1, before anyone has looked at them."""

    @contextmanager
    def plant() -> Iterator[None]:
        seen: list[dict[str, torch.Tensor]] = []

        def keep(run: Any, problem: Any, weights: Any, batch: Any) -> Any:
            seen.append(weights)
            return run(problem, weights, batch)

        def edit(run: Any, loss: Any) -> None:
            run(loss)
            change(seen[-1], len(seen))

        with function(proof, "forward", keep)(), function(torch.autograd, "backward", edit)():
            yield

    return plant


def gradient(name: str, change: Change, *, from_step: int = 1) -> Any:
    """The gradient of one weight is changed."""

    def edit(weights: dict[str, torch.Tensor], step: int) -> None:
        if step >= from_step:
            weights[name].grad = change(weights[name].grad)

    return after_backward(edit)


def at_one_place(value: Callable[[torch.Tensor], float]) -> Change:
    """Adds `value` of the tensor to one of its elements."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[tensor.numel() // 3] += value(tensor)
        return changed

    return change


def bias_dropped(name: str) -> Any:
    def other(run: Any, weights: Any, which: str, x: Any) -> Any:
        if not which.endswith(name):
            return run(weights, which, x)
        return run({**weights, f"{which}.bias": weights[f"{which}.bias"] * 0}, which, x)

    return function(proof, "linear", other)


def residual_dropped(norm: str, owner_name: str, ending: str) -> Any:
    """The sub-layer after `norm` gives its output less what is going to be added to it."""

    @contextmanager
    def plant() -> Iterator[None]:
        kept: dict[str, torch.Tensor] = {}

        def keep(run: Any, problem: Any, weights: Any, name: str, x: Any) -> Any:
            kept[name.rpartition(".")[2]] = x
            return run(problem, weights, name, x)

        def subtract(run: Any, *arguments: Any) -> Any:
            out = run(*arguments)
            name = next(each for each in arguments if isinstance(each, str))
            return out - kept[norm] if name.endswith(ending) else out

        with function(proof, "norm", keep)(), function(proof, owner_name, subtract)():
            yield

    return plant


def attended(**changes: Any) -> Any:
    """scaled_dot_product_attention with other arguments."""
    return function(F, "scaled_dot_product_attention", lambda run, *qkv, **named: run(*qkv, **{**named, **changes}))


def masked(change: Change) -> Any:
    def other(run: Any, *qkv: Any, attn_mask: Any) -> Any:
        return run(*qkv, attn_mask=change(attn_mask))

    return function(F, "scaled_dot_product_attention", other)


def batch(change: Callable[[Any], None]) -> Any:
    def other(start: Any, self: Any, *arguments: Any) -> None:
        start(self, *arguments)
        change(self)

    return lambda: replaced(proof._Batch, "__init__", lambda start: lambda self, *more: other(start, self, *more))


def adam(**changes: Any) -> Any:
    return function(torch.optim, "Adam", lambda run, weights, **named: run(weights, **{**named, **changes}))


def adam_of(change: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> Any:
    return function(torch.optim, "Adam", lambda run, weights, **named: run(change(list(weights)), **named))


def adam_by_hand(formula: Callable[..., torch.Tensor]) -> Any:
    """Adam whose update is `formula` of the moments, the step and its numbers."""

    class ByHand(torch.optim.Optimizer):
        def __init__(self, weights: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
            super().__init__(weights, {"lr": lr, "betas": betas, "eps": eps})
            self.steps = 0

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            self.steps += 1
            for group in self.param_groups:
                (beta_1, beta_2), eps = group["betas"], group["eps"]
                for weight in group["params"]:
                    state = self.state[weight]
                    first = state["m"] = beta_1 * state.get("m", 0) + (1 - beta_1) * weight.grad
                    second = state["v"] = beta_2 * state.get("v", 0) + (1 - beta_2) * weight.grad**2
                    weight -= group["lr"] * formula(first, second, self.steps, beta_1, beta_2, eps)

    return function(torch.optim, "Adam", lambda run, weights, **named: ByHand(list(weights), **named))


def after_step(change: Callable[[torch.Tensor], None]) -> Any:
    """`change` is given the query weights of layer 0 after every step of the optimiser."""

    def other(run: Any, weights: Any, **named: Any) -> Any:
        weights = list(weights)
        optimizer = run(weights, **named)
        optimizer.register_step_post_hook(lambda *_: change(weights[4].data))
        return optimizer

    return function(torch.optim, "Adam", other)


def together(*plants: Any) -> Any:
    @contextmanager
    def plant() -> Iterator[None]:
        with ExitStack() as stack:
            for each in plants:
                stack.enter_context(each())
            yield

    return plant


# Products of other hardware -------------------------------------------------------------------------------------------


def cut_to_ten_bits(x: torch.Tensor) -> torch.Tensor:
    """TensorFloat-32 as a tensor core reads a float32: the last 13 bits of the mantissa are not there."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def products(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, also_forward: bool = True) -> Any:
    """Every matrix product, also those of the backward pass, is done by `multiply`."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(a, b)
            return multiply(a, b) if also_forward else a @ b

        @staticmethod
        def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a, b = ctx.saved_tensors
            d_b = multiply(a.mT, d)
            return multiply(d, b.mT), d_b if b.ndim == a.ndim else d_b.sum(0)

    def linear(run: Any, x: Any, weight: Any, bias: Any) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        return Product.apply(rows, weight.t()).view(*x.shape[:-1], -1) + bias

    def attention(run: Any, query: Any, key: Any, value: Any, attn_mask: Any) -> Any:
        scores = Product.apply(query, key.mT) / query.shape[-1] ** 0.5
        return Product.apply(scores.masked_fill(~attn_mask, -torch.inf).softmax(-1), value)

    return together(function(F, "linear", linear), function(F, "scaled_dot_product_attention", attention))


def rounded_inputs(rounding: Change, **named: Any) -> Any:
    return products(lambda a, b: rounding(a) @ rounding(b), **named)


def added_in_float16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((*a.shape[:-1], b.shape[-1]), dtype=torch.float16)
    for index in range(a.shape[-1]):
        total += (a[..., :, index, None] * b[..., index, None, :]).half()
    return total.float()
