"""The reference is right: against PyTorch's own Transformer layer in float64, and against differences of its loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.environment.proof import reference
from modelyard.environment.proof.problem import NUM_LAYERS, WIDTH, Problem, make
from modelyard.environment.proof.reference import loss_and_gradients, solve


class Oracle(nn.Module):
    """The same model of ``nn.TransformerEncoderLayer``, whose attention, norms and order are PyTorch's."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        get = {name: torch.tensor(value) for name, value in problem.weights.items()}
        self.word = nn.Parameter(get["embedding.word"])
        self.position = nn.Parameter(get["embedding.position"])
        self.layers = nn.ModuleList()
        for index in range(NUM_LAYERS):
            name = f"layer_{index}"
            layer = nn.TransformerEncoderLayer(
                WIDTH,
                problem.num_heads,
                64,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=problem.norm_epsilon,
                batch_first=True,
                norm_first=True,
                dtype=torch.float64,
            )
            parts = [f"{name}.attention.{part}" for part in ("query", "key", "value")]
            state = {
                "self_attn.in_proj_weight": torch.cat([get[f"{part}.weight"].t() for part in parts]),
                "self_attn.in_proj_bias": torch.cat([get[f"{part}.bias"] for part in parts]),
                "self_attn.out_proj.weight": get[f"{name}.attention.output.weight"].t(),
                "self_attn.out_proj.bias": get[f"{name}.attention.output.bias"],
            }
            for theirs, ours in (("linear1", "inner"), ("linear2", "outer")):
                state[f"{theirs}.weight"] = get[f"{name}.feed_forward.{ours}.weight"].t()
                state[f"{theirs}.bias"] = get[f"{name}.feed_forward.{ours}.bias"]
            for theirs, ours in (("norm1", "norm_1"), ("norm2", "norm_2")):
                state[f"{theirs}.weight"], state[f"{theirs}.bias"] = (
                    get[f"{name}.{ours}.scale"],
                    get[f"{name}.{ours}.shift"],
                )
            layer.load_state_dict(state)
            self.layers.append(layer)
        self.norm = nn.LayerNorm(WIDTH, problem.norm_epsilon, dtype=torch.float64)
        self.norm.load_state_dict({"weight": get["norm.scale"], "bias": get["norm.shift"]})
        self.classifier = nn.Linear(WIDTH, 3, dtype=torch.float64)
        self.classifier.load_state_dict({"weight": get["classifier.weight"].t(), "bias": get["classifier.bias"]})

    def loss(self) -> torch.Tensor:
        mask = torch.tensor(self.problem.mask)
        x = self.word[torch.tensor(self.problem.ids)] + self.position
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        kept = self.norm(x).masked_fill(~mask[:, :, None], 0)
        logits = self.classifier(kept.sum(1) / mask.sum(1, keepdim=True))
        each = nn.functional.cross_entropy(logits, torch.tensor(self.problem.labels), reduction="none")
        weights = torch.tensor(self.problem.example_weights)
        return (each * weights).sum() / weights.sum()

    def named(self, *, gradients: bool) -> dict[str, np.ndarray]:
        """Tensors under our names and in our shapes."""

        def of(tensor: torch.Tensor) -> np.ndarray:
            return (tensor.grad if gradients else tensor).detach().numpy().copy()

        found = {
            "embedding.word": of(self.word),
            "embedding.position": of(self.position),
            "norm.scale": of(self.norm.weight),
            "norm.shift": of(self.norm.bias),
            "classifier.weight": of(self.classifier.weight).T,
            "classifier.bias": of(self.classifier.bias),
        }
        for index, layer in enumerate(self.layers):
            name = f"layer_{index}"
            weights = np.split(of(layer.self_attn.in_proj_weight), 3)
            biases = np.split(of(layer.self_attn.in_proj_bias), 3)
            for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
                found |= {f"{name}.attention.{part}.weight": weight.T, f"{name}.attention.{part}.bias": bias}
            for ours, linear in (
                ("attention.output", layer.self_attn.out_proj),
                ("feed_forward.inner", layer.linear1),
                ("feed_forward.outer", layer.linear2),
            ):
                found |= {f"{name}.{ours}.weight": of(linear.weight).T, f"{name}.{ours}.bias": of(linear.bias)}
            for ours, norm in (("norm_1", layer.norm1), ("norm_2", layer.norm2)):
                found |= {f"{name}.{ours}.scale": of(norm.weight), f"{name}.{ours}.shift": of(norm.bias)}
        return found


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=1e-10 * max(1e-3, np.abs(value).max()), err_msg=name
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_training_is_what_pytorch_does_in_float64(seed: int) -> None:
    problem = make(seed)
    ours = solve(problem)
    oracle = Oracle(problem)
    adam = torch.optim.Adam(
        oracle.parameters(), problem.learning_rate, (problem.beta_1, problem.beta_2), problem.adam_epsilon
    )
    losses, gradients = [], []
    for _ in range(problem.num_steps):
        adam.zero_grad()
        loss = oracle.loss()
        loss.backward()
        losses.append(loss.item())
        gradients.append(oracle.named(gradients=True))
        adam.step()
    np.testing.assert_allclose(ours.losses, losses, rtol=1e-12)
    assert_equal(dict(ours.first_gradients), gradients[0])
    assert_equal(dict(ours.last_gradients), gradients[-1])
    assert_equal(dict(ours.weights), oracle.named(gradients=False))


def test_gradients_are_the_slopes_of_the_loss() -> None:
    problem = make(5)
    _, gradients = loss_and_gradients(problem, problem.weights)
    random = np.random.default_rng(0)
    for name, weight in problem.weights.items():
        direction = random.normal(size=weight.shape)
        step = 1e-5
        above, below = (
            loss_and_gradients(problem, {**problem.weights, name: weight + sign * step * direction})[0]
            for sign in (1, -1)
        )
        slope = (above - below) / (2 * step)
        assert slope == pytest.approx((gradients[name] * direction).sum(), rel=1e-6, abs=1e-8), name


def test_the_bias_of_the_keys_has_no_gradient() -> None:
    solved = solve(make(0))
    for layer in range(NUM_LAYERS):
        assert np.abs(solved.first_gradients[f"layer_{layer}.attention.key.bias"]).max() < 1e-15


def test_gelu_is_exact_in_both_tails() -> None:
    x = np.array([-30.0, -9.0, -1.0, 0.0, 1e-9, 2.0, 30.0])
    theirs = torch.tensor(x, requires_grad=True)
    value = nn.functional.gelu(theirs)
    value.sum().backward()
    np.testing.assert_allclose(reference.gelu(x), value.detach().numpy(), rtol=1e-12, atol=1e-17)
    assert theirs.grad is not None
    np.testing.assert_allclose(reference.gelu_slope(x), theirs.grad.numpy(), rtol=1e-12, atol=1e-17)


def test_softmax_and_loss_hold_for_huge_scores() -> None:
    assert reference.softmax(np.array([1e4, 1e4, -np.inf])).tolist() == [0.5, 0.5, 0.0]
    loss, gradient = reference.cross_entropy(np.array([[1e4, 0.0, 0.0]]), np.array([1]), np.array([2.0]))
    assert loss == pytest.approx(1e4)
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]])
