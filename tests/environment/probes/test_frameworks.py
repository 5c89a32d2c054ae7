"""Frameworks as their files describe them and as they answer: the real ones here, and made ones that misbehave."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.environment.fake_pythons import OtherVariables, Place

from modelyard.environment.host import Host, Ran
from modelyard.environment.probes import ask_framework, packages
from modelyard.environment.probes.frameworks import PROGRAM, installed, merged
from modelyard.environment.snapshot import Framework, Installed


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "environment")


# The real ones --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("torch") is None, reason="no torch here")
def test_the_real_torch_by_its_files_alone() -> None:
    found = installed(Host(), sys.executable, ask="never", gpu=True)
    torch = found.framework("torch")
    assert torch is not None
    assert (torch.version, torch.asked) == (version("torch"), False)
    if version("torch").endswith("+cpu"):
        assert (torch.built_for, torch.built_version) == ("cpu", "")
    assert found.version("numpy") == version("numpy")
    assert found.version("modelyard") == version("modelyard")  # an editable installation counts
    assert found.conflicts == ()
    assert found.version("pytest") is None  # of no use to a diagnosis


def test_looking_imports_no_framework_here() -> None:
    program = """
        import sys
        from modelyard.environment.host import Host
        from modelyard.environment.probes.frameworks import installed
        assert installed(Host(), sys.executable, ask="auto", gpu=False).packages
        print(sorted({"torch", "numpy", "transformers", "tensorflow", "jax", "asyncio"} & sys.modules.keys()))
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_real_torch_and_transformers_answer() -> None:
    torch = pytest.importorskip("torch")
    found = installed(Host(), sys.executable, ask="always", gpu=False)
    answer, transformers = found.framework("torch"), found.framework("transformers")
    assert answer is not None
    assert transformers is not None
    assert (answer.outcome, answer.error, answer.problems) == ("ok", "", ())
    assert answer.version == torch.__version__
    assert answer.devices[0] == "cpu"
    assert len(answer.devices) == 1 + (torch.cuda.device_count() if torch.version.cuda else 0)
    assert answer.num_threads
    if sys.platform == "linux":
        assert any("libgomp" in each for each in answer.libraries)
    assert (transformers.outcome, transformers.version, transformers.backend) == (
        "ok",
        version("transformers"),
        "torch",
    )


# Those that misbehave -------------------------------------------------------------------------------------------------


def test_one_that_hangs(place: Place) -> None:
    place.add("torch", "2.9.0", {"torch/__init__.py": "import time; time.sleep(600)"})
    torch = place.ask("torch", seconds=1.5)
    assert (torch.outcome, torch.version) == ("timeout", "2.9.0")
    assert torch.error == "no answer within 2 s while importing torch"


def test_one_that_hangs_later_keeps_what_it_said_before(place: Place) -> None:
    files = {"jax/__init__.py": "import time\n__version__ = '0.9.1'\ndef default_backend(): time.sleep(600)"}
    place.add("jax", "0.9.0", files)
    jax = place.ask("jax", seconds=1.5)
    assert (jax.outcome, jax.version, jax.devices) == ("timeout", "0.9.1", ("cpu",))
    assert jax.error.endswith("while its devices")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("code", "name"),
    [("import ctypes; ctypes.string_at(0)", "SIGSEGV"), ("import os; os.abort()", "SIGABRT")],
)
def test_one_that_crashes(place: Place, code: str, name: str) -> None:
    place.add("torch", "2.9.0", {"torch/__init__.py": code})
    torch = place.ask("torch")
    assert torch.outcome == "crashed"
    assert torch.error.splitlines()[0].startswith("Fatal Python error")
    assert torch.error.splitlines()[-1] == f"{name} while importing torch"
    assert "torch/__init__.py" in torch.error


def test_one_that_raises_the_numpy_2_error(place: Place) -> None:
    code = """
        import sys
        print("A module that was compiled using NumPy 1.x cannot be run in NumPy 2.1.0", file=sys.stderr)
        print("AttributeError: _ARRAY_API not found", file=sys.stderr)
        raise ImportError("numpy.core.multiarray failed to import")
    """
    place.add("tensorflow", "2.17.0", {"tensorflow/__init__.py": code})
    tensorflow = place.ask("tensorflow")
    assert tensorflow.outcome == "failed"
    assert tensorflow.error.endswith("ImportError: numpy.core.multiarray failed to import")
    assert "_ARRAY_API not found" in tensorflow.warnings


@pytest.mark.parametrize("code", ["import sys; sys.exit('no licence')", "import os; os._exit(3)", "1 / 0", "x ="])
def test_one_that_ends_or_fails_in_another_way(place: Place, code: str) -> None:
    place.add("jax", "0.9.0", {"jax/__init__.py": code})
    jax = place.ask("jax")
    assert jax.outcome == "failed"
    assert jax.error


def test_one_that_prints_garbage(place: Place) -> None:
    code = """
        import os, sys
        os.write(1, bytes(range(256)) * 50)
        print("@modelyard@{not json", end="")
        sys.stdout.write("no end of line")
        sys.stderr.write("the same\\n" * 100_000)
        __version__ = "9.9"
        class backend:
            backend = staticmethod(lambda: "torch")
    """
    place.add("keras", "3.9.0", {"keras/__init__.py": code})
    keras = place.ask("keras")
    assert (keras.outcome, keras.version, keras.backend, keras.warnings) == ("ok", "9.9", "torch", "the same")


def test_a_folder_without_code(place: Place) -> None:
    place.add("torch", "2.9.0", {"torch/lib/leftover.txt": ""})
    assert place.ask("torch").error.splitlines()[-1].startswith("ImportError: torch is a folder without code")


def test_a_python_that_does_not_start() -> None:
    assert installed(OtherVariables(), "/nowhere/python", ask="always", gpu=True) == Installed()
    gone = merged(Framework(name="torch", version="2.9.0"), None, 60.0)
    assert (gone.outcome, gone.version) == ("failed", "2.9.0")


FAKE_TORCH = """
    import os, types
    __version__ = "2.9.0+cu128"
    version = types.SimpleNamespace(cuda="12.8", hip=None, xpu=None)
    get_num_threads = lambda: 3
    _C = types.SimpleNamespace(_cuda_getArchFlags=lambda: "sm_80 sm_90 compute_90")
    class cuda:
        def init(): raise RuntimeError("Unexpected error: Error 804: forward compatibility was attempted")
    class xpu:
        is_available = staticmethod(lambda: False)
    tensor = lambda data: data
"""


def test_torch_says_why_it_reaches_no_gpu_and_torchvision_is_really_called(place: Place) -> None:
    place.add("torch", "2.9.0+cu128", {"torch/__init__.py": FAKE_TORCH})
    nms = "def nms(*a): raise RuntimeError('operator torchvision::nms does not exist')"
    place.add("torchvision", "0.24.0", {"torchvision/__init__.py": "", "torchvision/ops.py": nms})
    torch = place.ask("torch")
    assert torch.outcome == "ok"
    assert torch.device_error == "RuntimeError: Unexpected error: Error 804: forward compatibility was attempted"
    assert (torch.built_for, torch.num_threads) == ("cuda", 3)
    assert torch.architectures == ("sm_80", "sm_90", "compute_90")
    assert torch.problems == ("torchvision-nms: RuntimeError: operator torchvision::nms does not exist",)


def test_a_gpu_that_is_reached_and_cannot_compute(place: Place) -> None:
    gpu = """
        class cuda:
            init = staticmethod(lambda: None)
            device_count = staticmethod(lambda: 2)
            get_device_name = staticmethod(lambda index: "NVIDIA RTX 5090")
        def ones(*a, device):
            raise RuntimeError("CUDA error: no kernel image is available\\nCUDA kernel errors might be late")
    """
    text = textwrap.dedent(FAKE_TORCH) + textwrap.dedent(gpu)
    place.add("torch", "2.9.0+cu128", {"torch/__init__.py": text})
    torch = place.ask("torch")
    assert torch.devices == ("cpu", "cuda:0 NVIDIA RTX 5090", "cuda:1 NVIDIA RTX 5090")
    assert torch.problems == ("cuda-compute: RuntimeError: CUDA error: no kernel image is available",)


def test_tensorflow_says_on_stderr_why_it_has_no_gpu(place: Place) -> None:
    code = """
        import sys, types
        print("2026: W gpu_device.cc:2433] Cannot dlopen some GPU libraries. Skipping", file=sys.stderr)
        sysconfig = types.SimpleNamespace(get_build_info=lambda: {"is_cuda_build": True, "cuda_version": "12.5.1"})
        config = types.SimpleNamespace(
            threading=types.SimpleNamespace(get_intra_op_parallelism_threads=lambda: 0),
            list_physical_devices=lambda: [types.SimpleNamespace(device_type="CPU", name="/physical_device:CPU:0")],
        )
    """
    place.add("tensorflow", "2.20.0", {"tensorflow/__init__.py": code})
    tensorflow = place.ask("tensorflow")
    assert tensorflow.devices == ("cpu",)
    assert tensorflow.device_error == "2026: W gpu_device.cc:2433] Cannot dlopen some GPU libraries. Skipping"


def test_jax_with_a_plugin_that_falls_back_says_why_and_takes_no_memory(place: Place) -> None:
    code = """
        import os, sys, types
        print(os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"], file=sys.stderr)
        default_backend = lambda: "cpu"
        def devices(platform=None):
            if platform: raise RuntimeError("Unable to initialize backend 'cuda': no supported devices")
            return [types.SimpleNamespace(platform="cpu", id=0, device_kind="cpu")]
        numpy = types.SimpleNamespace(ones=lambda shape: types.SimpleNamespace(sum=lambda: 16.0))
    """
    place.add("jax", "0.9.0", {"jax/__init__.py": code, "jax_plugins/xla_cuda13/__init__.py": ""})
    place.add("jax_cuda13_plugin", "0.9.0")
    jax = place.ask("jax")
    assert (jax.built_for, jax.built_version, jax.backend) == ("cuda", "13", "cpu")
    assert jax.device_error == "RuntimeError: Unable to initialize backend 'cuda': no supported devices"
    assert (jax.warnings, jax.problems) == ("false", ())
    assert place.ask("jax", OtherVariables(XLA_PYTHON_CLIENT_PREALLOCATE="true")).warnings == "true"


# What the files say ---------------------------------------------------------------------------------------------------

TORCH_VERSION = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'xpu']
__version__ = '{version}'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'abc'
hip: Optional[str] = {hip}
xpu: Optional[str] = {xpu}
"""


@pytest.mark.parametrize(
    ("values", "built"),
    [
        ({"version": "2.13.0+cpu"}, ("cpu", "")),
        ({"version": "2.13.0", "cuda": "'13.0'"}, ("cuda", "13.0")),
        ({"version": "2.13.0+rocm7.2", "hip": "'7.2.26015-fc0010cf6a'"}, ("rocm", "7.2")),
        ({"version": "2.4.0a0", "hip": "'6.1.40091'"}, ("rocm", "6.1")),
        ({"version": "2.13.0+xpu", "xpu": "'20250301'"}, ("xpu", "20250301")),
    ],
)
def test_what_torch_was_built_for(place: Place, values: dict[str, str], built: tuple[str, str]) -> None:
    values = {"cuda": "None", "hip": "None", "xpu": "None", **values}
    place.add("torch", values["version"].partition("+")[0], {"torch/version.py": TORCH_VERSION.format(**values)})
    torch = place.look().framework("torch")
    assert torch is not None
    assert (torch.version, (torch.built_for, torch.built_version)) == (values["version"], built)


def test_what_tensorflow_was_built_for(place: Place) -> None:
    text = (
        "build_info = collections.OrderedDict([('cuda_compute_capabilities', ['sm_60', 'compute_90']), "
        "('cuda_version', '12.5.1'), ('cudnn_version', '9'), ('is_cuda_build', True), ('is_rocm_build', False)])\n"
    )
    place.add("tensorflow", "2.20.0", {"tensorflow/python/platform/build_info.py": text})
    tensorflow = place.look().framework("tensorflow")
    assert tensorflow is not None
    assert (tensorflow.built_for, tensorflow.built_version) == ("cuda", "12.5.1")
    assert tensorflow.architectures == ("sm_60", "compute_90")
    (place.site / "tensorflow/python/platform/build_info.py").write_text("build_info = {}")
    tensorflow = place.look().framework("tensorflow")
    assert tensorflow is not None
    assert tensorflow.built_for == "cpu"


@pytest.mark.parametrize(
    ("plugin", "built"),
    [("jax_cuda12_plugin", ("cuda", "12")), ("jax_rocm7_plugin", ("rocm", "7")), ("libtpu", ("tpu", ""))],
)
def test_what_jax_was_built_for(place: Place, plugin: str, built: tuple[str, str]) -> None:
    place.add("jax", "0.9.0")
    jax = place.look().framework("jax")
    assert jax is not None
    assert jax.built_for == "cpu"
    place.add(plugin, "0.9.0")
    jax = place.look().framework("jax")
    assert jax is not None
    assert (jax.built_for, jax.built_version) == built


def test_which_backend_keras_takes(place: Place, tmp_path: Path) -> None:
    def backend(**variables: str) -> str:
        keras = place.look(OtherVariables(home=str(tmp_path), **variables)).framework("keras")
        assert keras is not None
        return keras.backend

    place.add("keras", "3.15.1")
    assert backend() == "tensorflow"
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps({"backend": "jax"}))
    assert backend() == "jax"
    assert backend(KERAS_BACKEND="torch") == "torch"
    (tmp_path / ".keras" / "keras.json").write_text("[1, {")
    assert backend() == "tensorflow"


# When to ask ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "variables", "gpu", "asked"),
    [
        ({"numpy": "2.4.0"}, {}, False, False),
        ({"numpy": "2.4.0"}, {}, True, True),
        ({}, {"LD_LIBRARY_PATH": "/opt/hpc/lib:/usr/local/cuda-12.4/lib64"}, False, True),
        ({}, {"LD_LIBRARY_PATH": "/opt/hpc/lib"}, False, False),
        ({"intel_openmp": "2025.1"}, {}, False, True),
        ({"torchvision": "0.24.0+cu128"}, {}, False, True),
        ({"torchvision": "0.24.0+cpu"}, {}, False, False),
        ({"numpy": "2.4.0", "jax": "0.4.20"}, {}, False, True),
        ({"numpy": "1.26.4", "jax": "0.4.20"}, {}, False, False),
    ],
)
def test_frameworks_are_asked_only_for_a_reason(
    place: Place, others: dict[str, str], variables: dict[str, str], gpu: bool, asked: bool
) -> None:
    text = TORCH_VERSION.format(version="2.9.0+cpu", cuda=None, hip=None, xpu=None)
    place.add("torch", "2.9.0+cpu", {"torch/version.py": text, "torch/__init__.py": ""})
    for name, release in others.items():
        place.add(name, release)
    host = OtherVariables(**variables)
    found = installed(host, place.python, gpu=gpu)
    assert ("torch" in host.asked) == asked
    assert [each.asked for each in found.frameworks] == [asked] * len(found.frameworks)


# The script, and garbage ----------------------------------------------------------------------------------------------


def test_the_script_runs_alone_in_an_old_python() -> None:
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"), feature_version=(3, 9))
    names = {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {each.partition(".")[0] for each in names} <= sys.stdlib_module_names
    assert ask_framework.MARK == packages.MARK


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*Framework.model_fields, "step"]), inner),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.integers() | st.none(), VALUES | st.text(), st.text())
def test_whatever_a_process_answers_is_a_fact(code: int | None, answer: object, errors: str) -> None:
    output = f"{packages.MARK}{json.dumps(answer)}"
    framework = merged(Framework(name="tensorflow", version="1"), Ran(code, output, errors, 1.0), 60.0)
    assert framework.outcome in ("ok", "failed", "timeout", "crashed")
    assert Framework.model_validate(framework.model_dump()) == framework
