"""The learning rate against transformers' schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from modelyard.training.schedule import Schedule, warmup_steps


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("num_steps", "num_warmup_steps"), [(20, 0), (20, 1), (20, 7), (20, 20), (1, 0)])
def test_it_is_the_schedule_of_transformers(name: Any, num_steps: int, num_warmup_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    length = {} if name == "constant" else {"num_training_steps": num_steps}
    make = getattr(transformers, f"get_{name}_schedule_with_warmup")
    oracle = make(optimizer, num_warmup_steps=num_warmup_steps, **length)
    schedule = Schedule(name, 3e-4, num_steps, num_warmup_steps)
    for step in range(num_steps):
        assert schedule.learning_rate(step) == pytest.approx(oracle.get_last_lr()[0], abs=1e-18), step
        optimizer.step()
        oracle.step()


def test_the_warm_up_is_a_share_of_all_steps() -> None:
    for num_steps, ratio in ((1000, 0.06), (10, 0.06), (10, 0.0), (10, 1.0), (3, 0.5)):
        oracle = transformers.TrainingArguments(warmup_steps=ratio if ratio < 1 else num_steps)
        assert warmup_steps(num_steps, ratio) == oracle.get_warmup_steps(num_steps)
