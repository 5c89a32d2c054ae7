"""PyTorch's side of the proof: the Transformer of ``environment/proof/problem.py`` in PyTorch's own functions.

    python -I -m modelyard.engines.torch.proof --device cpu --out proof.json

B examples, T positions, D width, N heads, H head width, as there.
"""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modelyard.environment.proof import command
from modelyard.environment.proof.command import NotOffered, Opened
from modelyard.environment.proof.judge import Observed, same_device
from modelyard.environment.proof.problem import Array, Case, Problem
from modelyard.environment.proof.record import Stack
from modelyard.errors import MachineError

KINDS = ("cpu", "cuda", "mps", "xpu")  # ROCm's devices are called cuda, too
# Some gradients are below what float16 holds with all its digits (6e-5). People train with a loss multiplied by a power
# of two, and divide the gradients by it; with this one neither end of float16 is reached here.
FLOAT16_LOSS_SCALE = 1024.0
# What PyTorch says where a kernel is missing, in words because it has no exception of its own for it.
MISSING = ("not implemented for", "not supported", "unsupported")

Weights = Mapping[str, torch.Tensor]


class TorchSide:
    """PyTorch on one device."""

    def open(self, device: str) -> Opened:
        """See `command.Side`."""
        self.device = _require(device)
        return Opened(
            framework="torch",
            version=torch.__version__,
            built_for=_built_for(),
            device=_name(self.device),
            device_name=_device_name(self.device),
            versions=_versions(),
        )

    def train(self, problem: Problem, case: Case) -> Observed:
        """See `command.Side`."""
        if case.precision == "float32":
            with _strict() if case.mode == "strict" else nullcontext():
                return _train(problem, case, self.device)
        if case.precision == "bfloat16" and self.device.type == "cuda" and not _has_bfloat16():
            raise NotOffered("this GPU has no bfloat16")
        try:
            return _train(problem, case, self.device)
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, NotImplementedError) or any(word in str(error) for word in MISSING):
                raise NotOffered(str(error).splitlines()[0]) from error
            raise

    def stack(self) -> Stack:
        """transformers builds a small BERT, and three steps on one batch lower its loss."""
        started = time.monotonic()
        try:
            what, losses, detail = _train_bert(self.device)
        except Exception as error:
            # As with a case: whatever a broken installation raises is the finding.
            what, losses, detail = "transformers", (), f"{type(error).__name__}: {error}"
        falls = len(losses) == 3 and losses[0] > losses[1] > losses[2]
        if not falls and not detail:
            detail = "the loss does not fall"
        return Stack(falls and not detail, what, losses, round(time.monotonic() - started, 3), detail)


# Training -------------------------------------------------------------------------------------------------------------


def _train(problem: Problem, case: Case, device: torch.device) -> Observed:
    weights = {
        name: torch.tensor(value, dtype=torch.float32, device=device).requires_grad_()
        for name, value in problem.weights.items()
    }
    batch = _Batch(problem, device)
    optimizer = torch.optim.Adam(
        weights.values(),
        lr=problem.learning_rate,
        betas=(problem.beta_1, problem.beta_2),
        eps=problem.adam_epsilon,
    )
    scale = FLOAT16_LOSS_SCALE if case.precision == "float16" else 1.0
    losses: list[float] = []
    history: list[dict[str, Array]] = []
    seen = _Seen()
    for _ in range(problem.num_steps):
        optimizer.zero_grad()
        with _mixed(case, device):
            logits = forward(problem, weights, batch)
        loss = loss_of(problem, logits, batch)
        torch.autograd.backward(loss * scale)
        for weight in weights.values():
            if weight.grad is not None:
                weight.grad /= scale
        seen.look(weights, logits, loss)
        losses.append(loss.item())
        history.append({name: _array(weight.grad) for name, weight in weights.items() if weight.grad is not None})
        optimizer.step()
    after = {name: _array(weight) for name, weight in weights.items()}
    return Observed(losses, history[0], history[-1], after, seen.devices, seen.dtypes)


class _Batch:
    """The batch on the device."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.ids = torch.tensor(problem.ids, device=device)  # (B, T) int64
        self.mask = torch.tensor(problem.mask, device=device)  # (B, T) bool, True for a token
        self.labels = torch.tensor(problem.labels, device=device)  # (B,) int64
        self.weights = torch.tensor(problem.example_weights, dtype=torch.float32, device=device)  # (B,)


def forward(problem: Problem, weights: Weights, batch: _Batch) -> torch.Tensor:
    """The logits, (B, C)."""
    x = F.embedding(batch.ids, weights["embedding.word"]) + weights["embedding.position"]
    for layer in range(problem.num_layers):
        name = f"layer_{layer}"
        x = x + attention(problem, weights, f"{name}.attention", norm(problem, weights, f"{name}.norm_1", x), batch)
        inner = F.gelu(linear(weights, f"{name}.feed_forward.inner", norm(problem, weights, f"{name}.norm_2", x)))
        x = x + linear(weights, f"{name}.feed_forward.outer", inner)
    share = batch.mask / batch.mask.sum(dim=1, keepdim=True)
    pooled = (norm(problem, weights, "norm", x) * share[:, :, None]).sum(dim=1)
    return linear(weights, "classifier", pooled)


def attention(problem: Problem, weights: Weights, name: str, x: torch.Tensor, batch: _Batch) -> torch.Tensor:
    """Multi-head self-attention; padding is no key. (B, T, D) -> (B, T, D)."""
    query, key, value = (
        linear(weights, f"{name}.{part}", x).view(*x.shape[:2], problem.num_heads, -1).transpose(1, 2)  # (B, N, T, H)
        for part in ("query", "key", "value")
    )
    mask = batch.mask[:, None, None, :].expand(-1, problem.num_heads, x.shape[1], -1)
    heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return linear(weights, f"{name}.output", heads.transpose(1, 2).flatten(-2))


def linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """x W + b; PyTorch keeps the weight of a linear as (out, in)."""
    return F.linear(x, weights[f"{name}.weight"].t(), weights[f"{name}.bias"])


def norm(problem: Problem, weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Layer normalisation over D."""
    scale, shift = weights[f"{name}.scale"], weights[f"{name}.shift"]
    return F.layer_norm(x, scale.shape, scale, shift, problem.norm_epsilon)


def loss_of(problem: Problem, logits: torch.Tensor, batch: _Batch) -> torch.Tensor:
    """The weighted mean over the examples, in float32 whatever the logits are."""
    each = F.cross_entropy(logits.float(), batch.labels, reduction="none")
    return (each * batch.weights).sum() / batch.weights.sum()


class _Seen:
    """The devices and dtypes that were found on the tensors themselves."""

    def __init__(self) -> None:
        self.devices: dict[str, set[str]] = {"parameters": set(), "gradients": set(), "outputs": set()}
        self.dtypes: dict[str, set[str]] = {"parameters": set(), "gradients": set(), "outputs": set()}

    def look(self, weights: Weights, logits: torch.Tensor, loss: torch.Tensor) -> None:
        gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
        for place, tensors in (("parameters", weights.values()), ("gradients", gradients), ("outputs", [logits])):
            self.devices[place] |= {_name(tensor.device) for tensor in tensors}
            self.dtypes[place] |= {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
        self.devices["outputs"].add(_name(loss.device))


def _array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


# Precision ------------------------------------------------------------------------------------------------------------


@contextmanager
def _strict() -> Iterator[None]:
    """Products in IEEE float32: no TensorFloat-32 (cuBLAS, cuDNN), no bfloat16 (oneDNN). Restored afterwards."""
    backends: Any = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn, backends.mkldnn.matmul]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _mixed(case: Case, device: torch.device) -> AbstractContextManager[Any]:
    """PyTorch's mixed precision; nothing for float32. Raises NotOffered where the device has none for the dtype."""
    if case.precision == "float32":
        return nullcontext()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*autocast")  # it warns, and computes in float32
        try:
            return torch.autocast(device.type, getattr(torch, case.precision))
        except UserWarning as warning:
            raise NotOffered(str(warning).splitlines()[0]) from warning


def _has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


# The device -----------------------------------------------------------------------------------------------------------


def _require(asked: str) -> torch.device:
    """The device, tried. Raises MachineError where it is not there or does not compute."""
    kind = asked.partition(":")[0]
    if kind not in KINDS:
        raise MachineError(f"PyTorch has no device {asked!r}", hint=f"--device is one of {', '.join(KINDS)}, cuda:1, …")
    try:
        tried = torch.ones(2, device=asked) + 1
        tried.cpu()  # waits for the kernel: a GPU says only then that the build has none for it
        return tried.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MachineError(
            f"PyTorch {torch.__version__} (built for {_built_for()}) cannot use the device {asked!r}: {reason}",
            hint="`modelyard doctor` says why, and what mends it",
        ) from error


def _name(device: torch.device) -> str:
    return device.type if device.index is None else f"{device.type}:{device.index}"


def _built_for() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return "XPU" if getattr(torch.version, "xpu", None) else "cpu"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "xpu":
        return str(torch.xpu.get_device_name(device))
    return command.processor_name()


def _versions() -> dict[str, str]:
    versions = {"numpy": np.__version__, "torch": torch.__version__}
    backends: Any = torch.backends
    if backends.cudnn.is_available():
        versions["cudnn"] = str(backends.cudnn.version())
    for package in ("transformers", "tokenizers", "safetensors"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


# The stack ------------------------------------------------------------------------------------------------------------


def _train_bert(device: torch.device) -> tuple[str, tuple[float, ...], str]:
    """What was trained, the loss of each step, and what is wrong with where it was computed."""
    import transformers  # seconds, and it may be what is broken

    what = f"transformers {transformers.__version__}: BERT, three steps"
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        id2label={0: "a", 1: "b", 2: "c"},
    )
    cpu = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 100, (8, 16), generator=cpu).to(device)
    labels = torch.randint(0, 3, (8,), generator=cpu).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.BertForSequenceClassification(config)
    model = model.to(device).eval()  # without dropout; gradients flow all the same
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses: list[float] = []
    places: set[str] = set()
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
        places |= {_name(each.device) for each in (loss, *model.parameters())}
    strangers = sorted(place for place in places if not same_device(_name(device), place))
    return what, tuple(losses), f"tensors are on {', '.join(strangers)}" if strangers else ""


if __name__ == "__main__":
    raise SystemExit(command.main(TorchSide()))
