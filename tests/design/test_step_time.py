"""Arithmetic, units, bounds and order of the predicted time; the kept calibration."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.design.devices import Price, catalogue, find
from modelyard.design.step_time import (
    Calibration,
    Interval,
    calibration_file,
    cost_dollars,
    energy_kilowatt_hours,
    load_calibration,
    predict_seconds,
    save_calibration,
    step_flops,
)
from modelyard.errors import InputError

CALIBRATION = Calibration(
    device_name="NVIDIA A100-SXM4-80GB",
    matrix_flops_per_second={"float32": 18e12, "bfloat16": 250e12},
    bandwidth_bytes_per_second=1.7e12,
    step_overhead_seconds=0.002,
    kernel_seconds=5e-6,
    taken="2026-11-23T12:00:00+00:00",
    versions={"torch": "2.13.0"},
)
A100 = find("a100-80gb")
AMOUNTS = st.floats(0, 1e18)
# BERT-base, as google-bert/bert-base-uncased says
CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def test_from_the_catalogue():
    # 312 teraflops at 30%, and 40% around it
    predicted = predict_seconds(93.6e12, 0, A100, "bfloat16")
    assert predicted.expected == pytest.approx(1.0)
    assert (predicted.low, predicted.high) == pytest.approx((0.6, 1.4))
    # 19.5 teraflops at 50%
    assert predict_seconds(9.75e12, 0, A100, "float32").expected == pytest.approx(1.0)
    # 2,039 GB/s at 70%; the larger of the two counts
    assert predict_seconds(93.6e12, 2 * 0.7 * 2.039e12, A100, "bfloat16").expected == pytest.approx(2.0)
    # a tiny model waits for its launches
    assert predict_seconds(1e9, 1e6, A100, "bfloat16", num_kernels=1000).expected == pytest.approx(6e-3)


def test_with_a_calibration():
    predicted = predict_seconds(250e12, 1.7e12, A100, "bfloat16", calibration=CALIBRATION)
    assert predicted.expected == pytest.approx(1.0 + 1.0 + 0.002)
    assert (predicted.low, predicted.high) == pytest.approx((2.002 * 0.8, 2.002 * 1.2))
    tiny = predict_seconds(1e6, 1e3, A100, "float32", num_kernels=2000, calibration=CALIBRATION)
    assert tiny.expected == pytest.approx(0.012)


def test_a_precision_without_a_rate_is_an_input_error():
    with pytest.raises(InputError, match="no rate of bfloat16 is known for t4, only of float16, float32") as caught:
        predict_seconds(1e12, 0, find("t4"), "bfloat16")
    assert "float32" in caught.value.hint
    with pytest.raises(InputError, match="NVIDIA A100-SXM4-80GB"):
        predict_seconds(1e12, 0, A100, "float16", calibration=CALIBRATION)


@given(flops=AMOUNTS, moved=AMOUNTS, more=st.floats(1, 100), calibrated=st.booleans())
def test_more_work_never_takes_less_time(flops, moved, more, calibrated):
    options = {"calibration": CALIBRATION if calibrated else None}
    base = predict_seconds(flops, moved, A100, "bfloat16", **options)
    assert 0 <= base.low <= base.expected <= base.high
    assert predict_seconds(flops * more, moved, A100, "bfloat16", **options).expected >= base.expected
    assert predict_seconds(flops, moved * more, A100, "bfloat16", **options).expected >= base.expected


def test_a_better_device_is_never_slower():
    order = ["a10", "l40s", "h100", "b200"]
    times = [predict_seconds(1e15, 1e11, find(name), "bfloat16").expected for name in order]
    assert times == sorted(times, reverse=True)


def test_published_training_of_an_encoder_lies_inside():
    # ModernBERT-base (arXiv 2412.13663): 22 layers, width 768, gated feed-forward of 1,152, every third layer global,
    # the others with a window of 128. It trains at 312,000 tokens a second on an H100 at 1,024 tokens.
    weights = 22 * (4 * 768 * 768 + 3 * 768 * 1152)
    attention = 4 * 768 * (8 * 1024 + 14 * 129)
    flops = 31_200 * 3 * (2 * weights + attention)
    predicted = predict_seconds(flops, 0, find("h100"), "bfloat16")
    assert predicted.low < 0.1 < predicted.high


def test_operations_of_a_step():
    once = step_flops(CONFIG, num_tokens=512, num_examples=1)
    assert step_flops(CONFIG, num_tokens=512, num_examples=32) == pytest.approx(32 * once)
    checkpointed = step_flops(CONFIG, num_tokens=512, num_examples=1, activation_checkpointing=True)
    assert checkpointed == pytest.approx(4 / 3 * once)
    assert step_flops(CONFIG, num_tokens=256, num_examples=2) < once  # attention grows with the square
    # 6 operations for each of 85 million weights of the layers, and attention
    assert once == pytest.approx(512 * (6 * 84_934_656 + 3 * 12 * 4 * 768 * 512))


def test_energy_and_cost():
    hour = Interval(3600, 3600, 3600)
    energy = energy_kilowatt_hours(hour, A100)
    assert (energy.low, energy.expected, energy.high) == pytest.approx((0.24, 0.32, 0.4))
    assert energy_kilowatt_hours(hour, find("tpu-v5e")) is None
    price = Price(device="a100-80gb", provider="somebody", dollars_per_hour=1.8, date="2026-11-01", source="https://x")
    cost = cost_dollars(Interval(1800, 3600, 7200), price)
    assert (cost.low, cost.expected, cost.high) == pytest.approx((0.9, 1.8, 3.6))


def test_intervals_scale():
    assert Interval(1, 2, 3) * 10 == Interval(10, 20, 30)


def test_every_device_can_be_predicted():
    for device in catalogue().values():
        for precision in device.flops_per_second:
            assert predict_seconds(1e15, 1e10, device, precision).expected > 0


def test_a_calibration_is_kept_and_found_again(tmp_path):
    assert load_calibration(tmp_path, CALIBRATION.device_name) is None
    path = save_calibration(CALIBRATION, tmp_path)
    assert path == calibration_file(tmp_path, CALIBRATION.device_name)
    assert path.name == "nvidia-a100-sxm4-80gb.json"
    assert load_calibration(tmp_path, CALIBRATION.device_name) == CALIBRATION
    newer = replace(CALIBRATION, bandwidth_bytes_per_second=1.6e12)
    save_calibration(newer, tmp_path)
    assert load_calibration(tmp_path, CALIBRATION.device_name) == newer
    assert load_calibration(tmp_path, "NVIDIA A100 SXM4 80GB") is None  # the same file name, another device
    assert load_calibration(tmp_path, "cpu") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: "not json",
        lambda data: "[]",
        lambda data: "{}",
        lambda data: json.dumps({**data, "format": 0}),
        lambda data: json.dumps({**data, "unknown": 1}),
        lambda data: json.dumps({**data, "bandwidth_bytes_per_second": 0}),
        lambda data: json.dumps({**data, "bandwidth_bytes_per_second": "fast"}),
        lambda data: json.dumps({**data, "matrix_flops_per_second": {"float32": -1}}),
        lambda data: json.dumps({**data, "matrix_flops_per_second": None}),
        lambda data: json.dumps({**data, "step_overhead_seconds": float("nan")}),
    ],
)
def test_a_damaged_calibration_counts_as_none(tmp_path, change):
    path = save_calibration(CALIBRATION, tmp_path)
    path.write_text(change(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    assert load_calibration(tmp_path, CALIBRATION.device_name) is None
