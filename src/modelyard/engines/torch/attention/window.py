"""The arithmetic of sliding-window + global attention (Longformer, arXiv 2004.05150, section 3).

Legend: B batch, T positions, D width, N heads, H head width (D = N·H), W one-sided window, G global tokens,
C queries of one block, K keys of one block.

Each form below is softmax(Q Kᵀ / √H) V over some set of keys:

- a **local** query sees the local keys at most W positions away, and every global token. A global token is
  left out of the window, or it would count twice. All of this uses the local projections.
- a **global** query sees every token that is no padding, through projections of its own.
- a **padded** query gets zeros.

The window is computed in blocks of C queries against the keys ``[start - W, stop + W)``. The window and the
global columns are two disjoint sets of keys; their sums of exponentials add, so merging them is exact (the
online softmax of arXiv 1805.02867). Backward recomputes the probabilities from q, k and the log-sum-exp, as
FlashAttention does (arXiv 2205.14135, algorithm 4), so nothing of size T × K is ever saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Finite, so that a row with nothing to see stays finite (its weight is multiplied by zero later); far enough
# below any score that float32 turns its exponential into an exact zero.
MASKED_SCORE = -1e30
# A block of W queries against 3W keys masks a third of its products; smaller blocks waste less but call more
# often (docs/experiments.md compares 64 to 512).
SMALLEST_BLOCK, LARGEST_BLOCK = 32, 256


@dataclass(frozen=True)
class TokenRoles:
    """Which token plays which part; one for all heads of a layer."""

    padded: Tensor
    """(B, T) bool, true where the token is padding."""
    is_global: Tensor
    """(B, T) bool, true where the token has global attention."""
    positions: Tensor
    """(B, G) int64, where each example's global tokens stand; arbitrary beyond an example's own count."""
    valid: Tensor
    """(B, G) bool, true for the slots that are real."""

    @classmethod
    def of(cls, padded: Tensor, is_global: Tensor) -> TokenRoles:
        """Roles from the two (B, T) bool masks; a token never is both."""
        counts = is_global.sum(dim=1)
        most = int(counts.max()) if counts.numel() else 0
        positions = is_global.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(padded, is_global, positions, is_global.gather(1, positions))

    def take(self, tensor: Tensor) -> Tensor:
        """Rows of the global tokens: (B, T, …) → (B, G, …)."""
        rows = torch.arange(tensor.shape[0], device=tensor.device)[:, None]
        return tensor[rows, self.positions]


def keep_mask(
    shape: tuple[int, ...],
    dropout: float,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.bool,
) -> Tensor:
    """Mask on the CPU, true or 1 with probability ``1 - dropout`` (to 2⁻³², finer than a float32 uniform).

    Comparing raw 32-bit draws costs less than half of ``bernoulli_``.
    """
    count = math.prod(shape)
    words = torch.empty((count + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    threshold = min(-(2**31) + round(dropout * 2**32), 2**31 - 1)
    draws = words.view(torch.int32)[:count].view(shape)
    return torch.ge(draws, threshold, out=torch.empty(shape, dtype=dtype))


# --- local queries on the CPU ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Queries ``[start, stop)`` against keys ``[low, high)``."""

    rows: slice
    columns: slice
    mask: Tensor
    """(C, K), 0 where visible, ``MASKED_SCORE`` elsewhere."""


def _blocks(local: Tensor, window: int, limit: int, dtype: torch.dtype) -> Iterator[_Block]:
    """Blocks that cover the local tokens of one example; ``local`` (T,) bool: no padding, not global."""
    where = local.nonzero()
    if not len(where):
        return
    first, end = int(where[0]), int(where[-1]) + 1  # padding at either side costs nothing
    size = min(max(window, SMALLEST_BLOCK), limit, end - first)
    # Column j of row i is the key at (start - W) + j: visible when 0 <= j - i <= 2W.
    offset = torch.arange(size + 2 * window)[None] - torch.arange(size)[:, None]
    band = torch.zeros(offset.shape, dtype=dtype).masked_fill_((offset < 0) | (offset > 2 * window), MASKED_SCORE)
    for start in range(first, end, size):
        stop = min(start + size, end)
        low, high = max(first, start - window), min(end, stop + window)
        mask = band[: stop - start, low - start + window : high - start + window]
        keys = local[low:high]
        if not keys.all():
            mask = mask.masked_fill(~keys, MASKED_SCORE)
        yield _Block(slice(start, stop), slice(low, high), mask)


@dataclass(frozen=True)
class _Heads:
    """Queries, keys and values of one example, (N, T, H) each."""

    query: Tensor
    key: Tensor
    value: Tensor

    def at(self, block: _Block) -> _Heads:
        return _Heads(self.query[:, block.rows], self.key[:, block.columns], self.value[:, block.columns])

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.query.shape[-1])

    def widen(self) -> _Heads:
        """The same in at least float32."""
        dtype = _wide(self.query.dtype)
        return _Heads(self.query.to(dtype), self.key.to(dtype), self.value.to(dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _FlashKernel:
    """PyTorch's fused CPU kernel. One call a block: where cores are shared, each call may wait for one."""

    block_queries = LARGEST_BLOCK

    def forward(self, heads: _Heads, mask: Tensor) -> tuple[Tensor, Tensor]:
        """→ answer (N, C, H) and log-sum-exp (N, C, 1) over the keys of the block."""
        batched = (heads.query[None], heads.key[None], heads.value[None])
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = attend(*batched, 0.0, False, attn_mask=mask[None, None])
        return out[0], lse[0][..., None]

    def backward(
        self, heads: _Heads, mask: Tensor, grad: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v (heads first). ``out`` and ``lse`` may cover more keys than the block's.

        The probabilities are exp(scores - lse) and the softmax's gradient needs only out · grad, so merged
        values give the block's exact share.
        """
        batched = (tensor[None] for tensor in (grad, heads.query, heads.key, heads.value, out))
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = attend(*batched, lse[None, ..., 0], 0.0, False, attn_mask=mask[None, None])
        return grads[0][0], grads[1][0], grads[2][0]


class _DropoutKernel:
    """The same contract with dropout on the probabilities, written out: the fused kernel has none.

    Masks come from one seeded generator, so that backward, which visits the blocks in the same order, draws
    them again.
    """

    block_queries = LARGEST_BLOCK // 2  # here the scores are in memory and should fit a cache

    def __init__(self, dropout: float, seed: int) -> None:
        self.dropout = dropout
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def boost(self) -> float:
        """What the kept probabilities are multiplied by."""
        return 1 / (1 - self.dropout) if self.dropout < 1 else 0.0

    def keep(self, like: Tensor) -> Tensor:
        """The next mask of ones and zeros, in the shape and dtype of ``like``."""
        return keep_mask(tuple(like.shape), self.dropout, self.generator, like.dtype)

    def _scores(self, heads: _Heads, mask: Tensor) -> Tensor:
        mask = mask.expand(heads.query.shape[0], -1, -1)
        return torch.baddbmm(mask, heads.query, heads.key.transpose(1, 2), alpha=heads.scale)

    def forward(self, heads: _Heads, mask: Tensor) -> tuple[Tensor, Tensor]:
        heads = heads.widen()
        scores = self._scores(heads, mask.to(heads.query.dtype))
        peak = scores.amax(-1, keepdim=True)
        weights = scores.sub_(peak).exp_()  # four passes in a cache cost a fifth of one ``logsumexp``
        total = weights.sum(-1, keepdim=True)
        answer = torch.bmm(weights.mul_(self.keep(weights)), heads.value)
        return answer.mul_(self.boost / total), total.log_().add_(peak)

    def backward(
        self, heads: _Heads, mask: Tensor, grad: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = heads.widen()
        grad, out = grad.to(heads.query.dtype), out.to(heads.query.dtype)
        weights = self._scores(heads, mask.to(heads.query.dtype)).sub_(lse).exp_()
        delta = (grad * out).sum(-1, keepdim=True)
        grad = grad * self.boost
        dropped, grad_scores = _softmax_backward(weights, self.keep(weights), grad, heads.value, delta)
        grad_query = torch.bmm(grad_scores, heads.key).mul_(heads.scale)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), heads.query).mul_(heads.scale)
        return grad_query, grad_key, torch.bmm(dropped.transpose(1, 2), grad)


def _softmax_backward(
    weights: Tensor, keep: Tensor | None, grad: Tensor, value: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Dropped-out probabilities and the gradient of the scores, both (N, C, K); overwrites ``weights``.

    ``grad`` is the answer's gradient times what kept probabilities are multiplied by. With O = (P ∘ M) V the
    row sum Σⱼ Pⱼ (∂L/∂Pⱼ) is ∂L/∂O · O, with dropout M as without it.
    """
    grad_scores = torch.bmm(grad, value.transpose(1, 2))
    if keep is None:
        grad_scores.sub_(delta).mul_(weights)
        return weights, grad_scores
    grad_scores.mul_(keep).sub_(delta).mul_(weights)
    return weights.mul_(keep), grad_scores


@dataclass(frozen=True)
class _Example:
    """One example, its roles, and how its blocks are computed."""

    heads: _Heads
    global_at: Tensor
    """(G,) int64."""
    local: Tensor
    """(T,) bool."""
    window: int
    kernel: _FlashKernel | _DropoutKernel

    def blocks(self) -> Iterator[_Block]:
        return _blocks(self.local, self.window, self.kernel.block_queries, self.heads.query.dtype)

    def columns(self) -> tuple[_Heads, Tensor | None, float]:
        """All queries, the global tokens' keys and values, widened; a dropout mask (N, T, G), its boost."""
        at, heads = self.global_at, self.heads
        wide = _Heads(heads.query, heads.key[:, at], heads.value[:, at]).widen()
        if isinstance(self.kernel, _FlashKernel):
            return wide, None, 1.0
        like = wide.query.new_empty(()).expand(*wide.query.shape[:2], len(at))
        return wide, self.kernel.keep(like), self.kernel.boost

    def forward(self, out: Tensor, lse: Tensor) -> None:
        """Fill ``out`` (N, T, H) and ``lse`` (N, T, 1), which holds ``MASKED_SCORE`` at first."""
        for block in self.blocks():
            out[:, block.rows], lse[:, block.rows] = self.kernel.forward(self.heads.at(block), block.mask)
        if len(self.global_at):
            columns, keep, boost = self.columns()
            scores = torch.bmm(columns.query, columns.key.transpose(1, 2)).mul_(columns.scale)
            merged = torch.logaddexp(lse, scores.logsumexp(-1, keepdim=True))
            weights = scores.sub_(merged).exp_()
            if keep is not None:
                weights.mul_(keep).mul_(boost)
            out.mul_(lse.sub_(merged).exp_()).add_(torch.bmm(weights, columns.value))
            lse.copy_(merged)
        if not self.local.all():
            out.mul_(self.local[:, None])

    def backward(self, grad: Tensor, out: Tensor, lse: Tensor, grads: _Heads) -> None:
        """Add to ``grads`` (N, T, H, zero at first) from the answer's gradient ``grad`` (N, T, H)."""
        if not self.local.all():
            grad = grad * self.local[:, None]
        for block in self.blocks():
            rows, columns = block.rows, block.columns
            found = self.kernel.backward(self.heads.at(block), block.mask, grad[:, rows], out[:, rows], lse[:, rows])
            grads.query[:, rows] = found[0]
            grads.key[:, columns] += found[1]
            grads.value[:, columns] += found[2]
        if not len(self.global_at):
            return
        heads, keep, boost = self.columns()
        grad = grad.to(heads.query.dtype)
        weights = torch.bmm(heads.query, heads.key.transpose(1, 2)).mul_(heads.scale).sub_(lse).exp_()
        delta = (grad * out).sum(-1, keepdim=True)
        grad = grad if keep is None else grad * boost
        dropped, grad_scores = _softmax_backward(weights, keep, grad, heads.value, delta)
        grad_scores.mul_(heads.scale)
        grads.query.add_(torch.bmm(grad_scores, heads.key))
        grads.key[:, self.global_at] += torch.bmm(grad_scores.transpose(1, 2), heads.query)
        grads.value[:, self.global_at] += torch.bmm(dropped.transpose(1, 2), grad)


class _BlockedAttention(torch.autograd.Function):
    """Local queries in blocks on the CPU; saves q, k, v, the answer and its log-sum-exp, nothing else."""

    @staticmethod
    def _examples(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Iterator[_Example]:
        roles = ctx.roles
        kernel = _FlashKernel() if ctx.seed is None else _DropoutKernel(ctx.dropout, ctx.seed)
        local = ~(roles.padded | roles.is_global)
        for row in range(query.shape[0]):
            heads = _Heads(*(tensor[row].transpose(0, 1) for tensor in (query, key, value)))
            yield _Example(heads, roles.positions[row][roles.valid[row]], local[row], ctx.window, kernel)

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        global_answers: Tensor | None,
        roles: TokenRoles,
        window: int,
        dropout: float,
        seed: int | None,
    ) -> Tensor:
        """``query``, ``key``, ``value`` (B, T, N, H), ``global_answers`` (B, G, N, H) → (B, T, N, H)."""
        ctx.roles, ctx.window, ctx.dropout, ctx.seed = roles, window, dropout, seed
        batch, length, heads, _ = query.shape
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)
        lse = torch.full((batch, heads, length, 1), MASKED_SCORE, dtype=_wide(query.dtype))
        with torch.autocast("cpu", enabled=False):  # it would round the scores to half precision
            for row, example in enumerate(_BlockedAttention._examples(ctx, query, key, value)):
                example.forward(out[row].transpose(0, 1), lse[row])
        if global_answers is not None:
            # Written here and not by the caller: overwriting later would need a second copy of ``out``.
            out[roles.is_global] = global_answers[roles.valid].to(out.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        roles = ctx.roles
        sums = [torch.zeros(query.shape, dtype=lse.dtype) for _ in range(3)]
        with torch.autocast("cpu", enabled=False):
            for row, example in enumerate(_BlockedAttention._examples(ctx, query, key, value)):
                grads = _Heads(*(total[row].transpose(0, 1) for total in sums))
                example.backward(grad[row].transpose(0, 1), out[row].transpose(0, 1), lse[row], grads)
        grad_global = None
        if ctx.needs_input_grad[3]:
            grad_global = grad.new_zeros(*roles.valid.shape, *query.shape[2:])
            grad_global[roles.valid] = grad[roles.is_global]
        return (*(total.to(query.dtype) for total in sums), grad_global, None, None, None, None)


def blocked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    global_answers: Tensor | None,
    roles: TokenRoles,
    window: int,
    dropout: float,
) -> Tensor:
    """Exact attention of one layer on the CPU; (B, T, N, H) → (B, T, N, H).

    ``global_answers`` (B, G, N, H), or None without global tokens, become the rows of the global tokens.
    ``dropout`` acts on the probabilities; its mask is drawn again in backward from one seed of the default
    generator.
    """
    seed = int(torch.randint(2**62, ())) if dropout else None
    function: Any = _BlockedAttention  # torch leaves ``apply`` untyped
    return cast(Tensor, function.apply(query, key, value, global_answers, roles, window, dropout, seed))
