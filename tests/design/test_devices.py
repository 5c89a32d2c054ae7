"""The catalogue of devices, its prices, and how names and sizes are read."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.design.devices import catalogue, find, parse_memory, prices
from modelyard.errors import InputError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("t4", "t4"),
        ("  T4 ", "t4"),
        ("RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("a100_80GB", "a100-80gb"),
        ("h100", "h100"),
        # as the drivers report them
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_device_is_found_by_many_spellings(typed, name):
    assert find(typed).name == name


def test_every_name_and_alias_leads_to_its_own_device():
    for device in catalogue().values():
        for spelling in (device.name, device.name.upper(), device.description, *device.aliases):
            assert find(spelling) is device


@pytest.mark.parametrize(
    ("typed", "near"),
    [("a100", ["a100-40gb", "a100-80gb"]), ("rtx-4080", ["rtx-4090"]), ("h1000", ["h100"]), ("mi300", ["mi300x"])],
)
def test_an_unknown_device_names_the_nearest(typed, near):
    with pytest.raises(InputError) as caught:
        find(typed)
    assert f"`{typed}`" in caught.value.problem
    assert all(name in caught.value.problem for name in near)
    assert caught.value.hint.startswith(f"--device {near[0]}")


def test_a_name_like_none_lists_all():
    with pytest.raises(InputError, match="known are t4, v100-16gb"):
        find("???")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("24GB", 24 * 10**9),
        ("24 gb", 24 * 10**9),
        ("24G", 24 * 10**9),
        ("24GiB", 24 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("512MiB", 512 << 20),
        ("1TB", 10**12),
        ("24", None),
        ("4090", None),
        ("t4", None),
        ("l4", None),
        ("-3GB", None),
        ("24GBs", None),
        ("", None),
    ],
)
def test_sizes_of_memory(text, num_bytes):
    assert parse_memory(text) == num_bytes


def test_no_memory_at_all_is_refused():
    with pytest.raises(InputError, match="`0GB`"):
        parse_memory("0GB")


def test_no_device_reads_as_a_size():
    assert all(parse_memory(name) is None for device in catalogue().values() for name in (device.name, *device.aliases))


@given(st.text(max_size=30))
def test_any_text_is_a_device_a_size_or_an_input_error(text):
    for read in (find, parse_memory):
        try:
            read(text)
        except InputError as error:
            assert error.hint


def test_the_figures_are_of_the_right_size():
    for device in catalogue().values():
        assert device.source.startswith("https://")
        assert 0.85 * device.memory_bytes < device.usable_bytes < device.memory_bytes
        assert 2e11 < device.bandwidth_bytes_per_second < 1e13
        rates = device.flops_per_second
        assert set(rates) <= {"float32", "tf32", "float16", "bfloat16"}
        assert all(5e12 < rate < 3e15 for rate in rates.values())
        assert rates.get("bfloat16", 0) in (0, rates.get("float16", rates.get("bfloat16")))
        if {"float32", "tf32", "float16"} <= set(rates):
            assert rates["float32"] <= rates["tf32"] <= 0.51 * rates["float16"]
        if device.vendor == "nvidia":
            assert device.capability is not None
            assert ("bfloat16" in rates) == (float(device.capability) >= 8)  # Ampere brought it
            assert device.watts is not None


def test_figures_that_papers_and_sheets_repeat():
    assert find("a100-80gb").flops_per_second["bfloat16"] == 312e12
    assert find("h100").flops_per_second["bfloat16"] == 989.4e12
    assert find("v100-16gb").flops_per_second["float16"] == 125e12
    assert find("h200").bandwidth_bytes_per_second == 4.8e12
    assert find("t4").memory_bytes == 16 * GIB


def test_prices_are_of_known_devices_with_a_day_and_a_source():
    known = [price for name in catalogue() for price in prices(name)]
    assert len(known) >= 10
    for price in known:
        assert 0.1 < price.dollars_per_hour < 20
        assert datetime.date(2026, 1, 1) <= datetime.date.fromisoformat(price.date)
        assert price.source.startswith("https://")
    for name in catalogue():
        asked = [price.dollars_per_hour for price in prices(name)]
        assert asked == sorted(asked)
    assert prices("rtx-3090") == ()


def test_every_price_has_a_device():
    from modelyard.design.devices import _read

    assert set(_read("prices.yaml")["prices"]) <= set(catalogue())
