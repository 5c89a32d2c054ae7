"""How far off a right answer may be, in each precision.

A bound is u x growth x `MARGIN`. The unit roundoff u is the largest relative error of one rounding: 2^-p for p
significant bits. The growth is how much of it three steps gather here, measured as the worst of 200 clean runs with
different seeds (``benchmarks/proof_sabotage.py --clean 200`` measures it again), rounded up. The margin is for hardware
and libraries that add in another order, or whose exponential is a digit worse, than those measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.environment.proof.problem import Case

MARGIN = 4.0


@dataclass(frozen=True)
class Bounds:
    """The largest relative errors that pass, as `judge.error_of` measures them."""

    loss: float
    gradients: float
    weights: float


def _bounds(significant_bits: int, *, loss: float, gradients: float, weights: float) -> Bounds:
    scale = MARGIN * 2.0**-significant_bits
    return Bounds(scale * loss, scale * gradients, scale * weights)


# Measured growth with PyTorch 2.13 on a CPU: loss 2.9, gradients 27, weights 890. The last is large because a weight of
# one is stored to u, and is measured by how far its tensor moved, which is a hundredth.
FLOAT32 = _bounds(24, loss=4, gradients=32, weights=1000)  # 9.5e-7, 7.6e-6, 2.4e-4
# Products of numbers cut to TensorFloat-32's ten bits of mantissa (NVIDIA A100 whitepaper, 2020), the rest in float32:
# 2.7, 21, 30. Cutting errs up to 2 u, rounding half of that.
TENSOR_FLOAT_32 = _bounds(11, loss=4, gradients=25, weights=32)  # 7.8e-3, 4.9e-2, 6.2e-2
# Products in one pass of bfloat16, as a TPU multiplies float32 unless asked: 0.6, 19, 7.6.
BFLOAT16_PASS = _bounds(8, loss=1, gradients=20, weights=8)  # 1.6e-2, 3.1e-1, 1.3e-1
# Mixed precision, bfloat16: 1.1, 9.2, 7.0; float16: 0.7, 7.0, 6.3.
BFLOAT16 = _bounds(8, loss=1.5, gradients=10, weights=8)  # 2.3e-2, 1.6e-1, 1.3e-1
FLOAT16 = _bounds(11, loss=1, gradients=8, weights=8)  # 2.0e-3, 1.6e-2, 1.6e-2


def bounds_for(case: Case, device: str) -> Bounds:
    """The bounds of a case on a device (``cpu``, ``cuda:0``, ``tpu:0``)."""
    if case.precision == "float16":
        return FLOAT16
    if case.precision == "bfloat16":
        return BFLOAT16
    if case.mode == "strict":
        return FLOAT32
    return BFLOAT16_PASS if device.partition(":")[0] == "tpu" else TENSOR_FLOAT_32
