"""Memory besides the tensors."""

from __future__ import annotations

import pytest

from modelyard.design import fixed_costs
from modelyard.design.devices import catalogue


@pytest.mark.parametrize(
    ("capability", "config", "num_bytes"),
    [
        ("8.0", None, 8_519_680),
        ("7.5", None, 8_519_680),
        ("9.0", None, 32 << 20),
        ("10.0", None, 32 << 20),
        ("12.0", None, 32 << 20),
        ("gfx90a", None, 32 << 20),
        ("gfx942", None, 128 << 20),
        (None, None, 8_519_680),
        ("9.0", ":4096:8", 32 << 20),
        ("9.0", ":16:8", 128 << 10),
        ("9.0", ":4096:2:16:8", 8_519_680),
        ("8.0", "nonsense", 8_519_680),
        ("9.0", ":0:0", 0),
    ],
)
def test_the_workspace_of_matrix_products(capability, config, num_bytes):
    assert fixed_costs.blas_workspace_bytes(capability, config) == num_bytes


def test_backward_has_a_workspace_of_its_own():
    assert fixed_costs.num_blas_workspaces("training") == 2
    assert fixed_costs.num_blas_workspaces("prediction") == 1


def test_every_device_has_an_estimate_of_its_context():
    for device in catalogue().values():
        assert 100 << 20 < fixed_costs.context_bytes(device.capability) < 1 << 30
    assert fixed_costs.context_bytes("12.1") == fixed_costs.context_bytes("12.0")
    assert fixed_costs.context_bytes("8.7") == fixed_costs.context_bytes("8.0")  # the most of Ampere and Ada
    assert fixed_costs.context_bytes(None) == fixed_costs.context_bytes("99.0") == 500 << 20


def test_only_foreach_keeps_a_copy():
    assert fixed_costs.optimizer_temporary_bytes(1000, "foreach") == 1000
    assert fixed_costs.optimizer_temporary_bytes(1000, "fused") == 0
    assert fixed_costs.optimizer_temporary_bytes(1000, "loop") == 0
    assert fixed_costs.cudnn_workspace_bytes() == 0
    assert fixed_costs.communicator_bytes() > 0
