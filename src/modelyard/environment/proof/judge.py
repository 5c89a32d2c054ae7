"""Compare what a framework computed with the reference."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelyard.environment.proof.bounds import bounds_for
from modelyard.environment.proof.problem import Array, Case, Problem
from modelyard.environment.proof.record import Check, JudgedCase
from modelyard.environment.proof.reference import Reference

PLACES = ("parameters", "gradients", "outputs")  # where devices and dtypes are looked at


@dataclass(frozen=True)
class Observed:
    """What a framework computed. Tensors have the names and shapes of `Problem.weights`, copied to float64.

    `devices` and `dtypes` say, for each of `PLACES`, all that were found on the tensors themselves: devices as ``cpu``,
    ``cuda:0``, ``mps:0``, ``tpu:0``; dtypes as ``float32``, ``bfloat16``, ``float16``. ``outputs`` are the logits.
    """

    losses: Sequence[float]  # before each step
    first_gradients: Mapping[str, Array]
    last_gradients: Mapping[str, Array]
    weights: Mapping[str, Array]  # after the last step
    devices: Mapping[str, Collection[str]]
    dtypes: Mapping[str, Collection[str]]


@dataclass(frozen=True)
class _Compared:
    """A tensor beside its reference. `scale` is the size that errors are relative to."""

    where: str
    found: Any  # an array, or None where the framework gave none
    expected: Array
    scale: float


def judge(
    problem: Problem, reference: Reference, observed: Observed, case: Case, device: str, seconds: float = 0.0
) -> JudgedCase:
    """All checks of one case. `device` is the one that was asked for: ``cpu``, ``cuda``, ``cuda:1``, …"""
    bounds = bounds_for(case, device)
    losses = [_compare("loss", observed.losses, reference.losses)]
    gradients = list(_gradients(reference, observed))
    weights = list(_movements(problem, reference, observed))
    return JudgedCase(
        case.precision,
        case.mode,
        (
            _finite([*losses, *gradients, *weights]),
            _device(observed, device),
            _dtype(observed, case),
            _close("loss", losses, bounds.loss),
            _close("gradients", gradients, bounds.gradients),
            _close("weights", weights, bounds.weights),
        ),
        seconds,
    )


def failed(case: Case, error: BaseException, seconds: float = 0.0) -> JudgedCase:
    """The case of a training that raised an error."""
    check = Check("ran", False, detail=f"{type(error).__name__}: {error}")
    return JudgedCase(case.precision, case.mode, (check,), seconds)


# What is compared -----------------------------------------------------------------------------------------------------


def _gradients(reference: Reference, observed: Observed) -> Iterator[_Compared]:
    first, last = reference.first_gradients, reference.last_gradients
    for step, found, expected in (
        ("first step", observed.first_gradients, first),
        ("last step", observed.last_gradients, last),
    ):
        for name in expected:
            # One ruler for both steps: as the model learns, sums over examples cancel and shrink, their errors do not.
            ruler = np.stack([first[_ruler(name)], last[_ruler(name)]])
            yield _compare(f"{name}, {step}", found.get(name), expected[name], ruler)


def _movements(problem: Problem, reference: Reference, observed: Observed) -> Iterator[_Compared]:
    """How far each weight went from its start: compared with the weight itself, a wrong step would look small."""
    moved = {name: reference.weights[name] - start for name, start in problem.weights.items()}
    for name, start in problem.weights.items():
        found = observed.weights.get(name)
        if found is not None and np.shape(found) == start.shape:
            found = np.asarray(found, dtype=np.float64) - start
        yield _compare(name, found, moved[name], moved[_ruler(name)])


def _ruler(name: str) -> str:
    """The tensor whose size errors of `name` are measured with: its own, but for the bias of the keys.

    That bias adds the same number to all scores of a query, which the softmax takes off again: its gradient is zero, a
    sum of terms of the size of the key weights' gradient that cancel, and rounding leaves an error of that size.
    """
    return name.removesuffix("bias") + "weight" if name.endswith(".key.bias") else name


def _compare(where: str, found: Any, expected: Any, ruler: Any = None) -> _Compared:
    expected = np.asarray(expected, dtype=np.float64)
    scale = float(np.abs(expected if ruler is None else ruler).max())
    return _Compared(where, None if found is None else np.asarray(found, dtype=np.float64), expected, scale)


def error_of(compared: _Compared) -> float:
    """max |found - expected| / max |expected| over a tensor.

    Rounding errors of an element come from sums over the whole tensor's sources, so they have the size of the tensor's
    largest elements; relative to small elements they would be arbitrarily large.
    """
    if compared.found is None or compared.found.shape != compared.expected.shape:
        return math.inf
    error = np.abs(compared.found - compared.expected).max() / compared.scale
    return float(error) if np.isfinite(error) else math.inf


# The checks -----------------------------------------------------------------------------------------------------------


def _finite(everything: list[_Compared]) -> Check:
    for each in everything:
        if each.found is not None and not np.isfinite(each.found).all():
            count = int((~np.isfinite(each.found)).sum())
            return Check("finite", False, where=each.where, detail=f"{count} of {each.found.size} are NaN or infinite")
    return Check("finite", True)


def _close(name: str, tensors: list[_Compared], bound: float) -> Check:
    worst = max(tensors, key=error_of)
    error = error_of(worst)
    if worst.found is None:
        return Check(name, False, None, bound, worst.where, "the framework gave none")
    if worst.found.shape != worst.expected.shape:
        detail = f"shape {worst.found.shape}, expected {worst.expected.shape}"
        return Check(name, False, None, bound, worst.where, detail)
    detail = "" if error <= bound else _largest_difference(worst)
    return Check(name, error <= bound, error if math.isfinite(error) else None, bound, worst.where, detail)


def _largest_difference(compared: _Compared) -> str:
    differences = np.abs(compared.found - compared.expected)
    index = np.unravel_index(int(np.nanargmax(np.where(np.isnan(differences), np.inf, differences))), differences.shape)
    place = "[" + ", ".join(str(int(each)) for each in index) + "]"
    return f"at {place}: {compared.found[index]:.9g}, expected {compared.expected[index]:.9g}"


def _device(observed: Observed, asked: str) -> Check:
    for place in PLACES:
        found = sorted(observed.devices.get(place, ()))
        if not found or not all(same_device(asked, each) for each in found):
            detail = f"{place} are on {', '.join(found) or 'no device'}, asked for {asked}"
            return Check("device", False, where=place, detail=detail)
    return Check("device", True, detail=asked)


def same_device(asked: str, found: str) -> bool:
    """``cuda`` is any GPU of that kind; ``cuda:1`` is that one; ``cpu`` and ``cpu:0`` are the same."""
    kind, _, index = asked.partition(":")
    found_kind, _, found_index = found.partition(":")
    return kind == found_kind and (index == "" or (found_index or "0") == index)


def _dtype(observed: Observed, case: Case) -> Check:
    for place, expected in zip(PLACES, ("float32", "float32", case.precision), strict=True):
        found = sorted(observed.dtypes.get(place, ()))
        if found != [expected]:
            return Check("dtype", False, where=place, detail=f"{', '.join(found) or 'none'}, expected {expected}")
    return Check("dtype", True)
