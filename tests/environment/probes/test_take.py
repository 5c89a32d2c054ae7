"""The whole look at a machine: probes that fail or hang cost only their own part."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest
from tests.environment.machines import FakeGpu, FakeHost, fake_nvml

from modelyard.environment.host import Answer, Host
from modelyard.environment.probes import has_gpu, take
from modelyard.environment.probes.attempts import Attempts, at_once, in_thread
from modelyard.environment.probes.managed import managed
from modelyard.environment.snapshot import Accelerators, Amd, Gpu, Managed, Nvidia, Snapshot

HUB_ANSWERS = {"https://huggingface.co": Answer(200, {"x-repo-commit": "abc"})}


def test_a_healthy_machine_is_read_without_a_gap() -> None:
    host = FakeHost(nvml_module=fake_nvml(FakeGpu()), answers=HUB_ANSWERS)
    snapshot = take(host, ask="never", begin=at_once)
    assert snapshot.unread == ()
    assert snapshot.system.name == "linux" and snapshot.python.version == "3.12.4"
    assert snapshot.accelerators.nvidia.gpus[0].capability == "8.9"
    assert [(each.purpose, each.serves) for each in snapshot.reach] == [("hub", True)]
    assert snapshot.memory.total_bytes == 32 << 30 and snapshot.disk("hub") is not None


def test_this_machine_with_threads() -> None:
    snapshot = take(Host(), ask="never", network=False)
    assert snapshot.unread == () and snapshot.reach == ()
    assert snapshot.installed.version("pydantic") is None or snapshot.installed.packages
    assert all(each.writable for each in snapshot.disks if each.purpose in ("cache", "temporary"))


def test_no_network_is_asked_when_told_so() -> None:
    host = FakeHost(answers=HUB_ANSWERS)
    take(host, ask="never", network=False, begin=at_once)
    assert host.asked == []


def test_a_probe_that_raises_leaves_a_note_and_everything_else() -> None:
    class Broken(FakeHost):
        def cores(self) -> tuple[int | None, int | None, int | None]:
            raise ZeroDivisionError("psutil of another planet\nand more")

    snapshot = take(Broken(), ask="never", network=False)
    assert [(each.probe, each.problem) for each in snapshot.unread if each.probe == "cpu"] == [
        ("cpu", "ZeroDivisionError: psutil of another planet")
    ]
    assert snapshot.cpu.logical_cores is None and snapshot.memory.total_bytes == 32 << 30


def test_a_file_system_that_never_answers_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard.environment.probes.PLACE_SECONDS", 0.2)
    never = threading.Event()

    class Hanging(FakeHost):
        def try_write(self, folder: str) -> str:
            if "huggingface" in folder:
                never.wait(30)
            return ""

    started = time.monotonic()
    snapshot = take(Hanging(), ask="never", network=False)
    never.set()
    assert time.monotonic() - started < 5
    hub, cache = snapshot.disk("hub"), snapshot.disk("cache")
    assert hub is not None and hub.writable is None and hub.path == "/home/ann/.cache/huggingface"
    assert cache is not None and cache.writable is True
    assert [(each.probe, each.problem) for each in snapshot.unread if each.probe.startswith("disk")] == [
        ("disk hub", "no answer within 0.2 s")
    ]


def test_text_that_is_no_text_is_written_all_the_same() -> None:
    host = FakeHost(variables={"LD_LIBRARY_PATH": "/a/\udcff"}, current_folder="/data/\udce9t\udce9")
    snapshot = take(host, ask="never", network=False, begin=at_once)
    assert Snapshot.model_validate_json(snapshot.model_dump_json()) == snapshot
    assert snapshot.configuration.variables["LD_LIBRARY_PATH"] == "/a/?"


def test_which_machines_are_worth_asking_a_framework() -> None:
    inside, card = Gpu(name="Intel GPU 0x46a6", integrated=True), Gpu(name="Intel GPU 0xe20b")
    assert not has_gpu(Accelerators()) and not has_gpu(Accelerators(intel=(inside,), amd=Amd(gpus=(inside,))))
    assert has_gpu(Accelerators(intel=(inside, card))) and has_gpu(Accelerators(nvidia=Nvidia(gpus=(card,))))
    assert has_gpu(Accelerators(apple=inside)) and has_gpu(Accelerators(tpu="v5e (4 chips)"))


def test_attempts_wait_side_by_side() -> None:
    attempts = Attempts(in_thread)
    started = time.monotonic()
    slow = [attempts.begin(f"slow {index}", lambda: time.sleep(0.2), None, 5.0) for index in range(8)]
    for collect in slow:
        collect()
    assert time.monotonic() - started < 1.2 and attempts.unread == []


def environment(name: str, **files: object) -> dict[str, str]:
    folder = f"/e/{name}"
    return {f"{folder}/{path}": text if isinstance(text, str) else json.dumps(text) for path, text in files.items()}


def test_environments_of_ours_in_every_state() -> None:
    described = {"format": 1, "framework": "torch", "accelerator": "cpu", "current": "2"}
    proof = {
        "passed": False,
        "cases": [
            {"precision": "float32", "mode": "strict", "passed": False,
             "checks": [{"name": "loss", "passed": True}, {"name": "gradients", "passed": False}]},
            {"precision": "float16", "mode": "default", "passed": True, "checks": []},
        ],
        "stack": {"passed": False, "what": "transformers 5.23.0: BERT", "detail": "loss did not fall"},
    }  # fmt: skip
    files = {
        **environment("good", **{
            "environment.json": described, "builds/2/build.json": {"state": "ready"},
            "builds/2/proof.json": {"passed": True}, "builds/2/.venv/pyvenv.cfg": "",
        }),
        **environment("sick", **{
            "environment.json": described, "builds/2/build.json": {"state": "ready"}, "builds/2/proof.json": proof,
            "builds/2/.venv/pyvenv.cfg": "",
        }),
        **environment("gone", **{"environment.json": described, "builds/1/build.json": {"state": "ready"}}),
        **environment("killed", **{"builds/1/build.json": {"state": "building"}}),
        **environment("begun", **{"environment.json": {**described, "current": ""}}),
        **environment("torn", **{"environment.json": '{"format": 1, "fra'}),
    }  # fmt: skip
    found = {each.name: each for each in managed(FakeHost(files=files), "/e")}
    assert {name: each.state for name, each in found.items()} == {
        "good": "ready", "sick": "ready", "gone": "broken", "killed": "unfinished", "begun": "unfinished",
        "torn": "broken",
    }  # fmt: skip
    assert found["good"] == Managed(name="good", framework="torch", accelerator="cpu", state="ready", proved=True)
    assert found["sick"].proved is False
    assert found["sick"].proof_failures == ("float32 strict: gradients", "transformers 5.23.0: BERT: loss did not fall")


def test_no_framework_and_nothing_heavy_is_loaded() -> None:
    program = (
        "import sys\nfrom modelyard.environment.host import Host\nfrom modelyard.environment.probes import take\n"
        "take(Host(), ask='never', network=False)\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'tensorflow', 'jax', 'asyncio', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
