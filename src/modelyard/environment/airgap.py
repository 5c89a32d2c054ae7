"""Everything that an environment is installed from, in one folder, for a machine without a network.

The folder holds ``wheels/``, ``requirements.txt`` with a hash for each, ``INSTALL.md`` and ``SHA256SUMS``. uv has no
command that downloads, so pip does it; which packages the target needs is uv's answer, since pip asks markers of the
machine that it runs on.
"""

from __future__ import annotations

import difflib
import os
import platform as host_platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelyard.environment import airgap_text, locked
from modelyard.environment.compatibility import normalised
from modelyard.environment.host import Host
from modelyard.environment.locked import Locked
from modelyard.environment.redaction import without_secrets
from modelyard.environment.sources import Sources, read_sources, uv_arguments, uv_variables
from modelyard.environment.uv import Uv, ignore
from modelyard.errors import InputError, MachineError, UsageError
from modelyard.runs.files import TEMPORARY_MARK, file_sha256, flush_to_disk, temporary_path, write_text

DOWNLOAD_SECONDS = 4 * 3600  # several GB over a slow line
SPARE_BYTES = 50_000_000
_GLIBC_FLOOR = 28  # of frameworks' wheels today: manylinux_2_28


@dataclass(frozen=True)
class Platform:
    """A target: its name here, uv's name of it, pip's tags, and the marker that only it fulfils."""

    name: str
    uv: str
    tags: tuple[str, ...]
    marker: str


def _linux(machine: str, glibc_minor: int) -> Platform:
    old = ("manylinux2014", *(("manylinux2010", "manylinux1") if machine == "x86_64" else ()), "linux")
    tags = tuple(f"manylinux_2_{minor}_{machine}" for minor in range(glibc_minor, 4, -1))
    return Platform(
        f"linux-{machine}", f"{machine}-manylinux_2_28", (*tags, *(f"{each}_{machine}" for each in old)),
        f"sys_platform == 'linux' and platform_machine == '{machine}'",
    )  # fmt: skip


PLATFORMS = {
    each.name: each
    for each in (
        _linux("x86_64", _GLIBC_FLOOR),
        _linux("aarch64", _GLIBC_FLOOR),
        Platform(
            "macos-arm64", "aarch64-apple-darwin", ("macosx_14_0_arm64",),
            "sys_platform == 'darwin' and platform_machine == 'arm64'",
        ),
        Platform(
            "windows-x86_64", "x86_64-pc-windows-msvc", ("win_amd64",),
            "sys_platform == 'win32' and platform_machine == 'AMD64'",
        ),
    )
}  # fmt: skip


def collect(
    build: Path, directory: Path, platform: str | None = None, *,
    name: str = "modelyard", framework: str = "", device: str = "cpu", uv: str | None = None, python: str | None = None,
) -> Path:  # fmt: skip
    """Fill `directory` with all that the environment in `build` is installed from, and return it.

    `platform` is one of PLATFORMS (this machine's if it is not given); for another one than the lock's, the project is
    locked again, with the same versions where that platform has them. `framework` and `device` make INSTALL.md name the
    command of the proof. `python` is the one whose pip downloads. `directory` appears whole or not at all; what an
    interrupted call left is removed by the next.

    Raises UsageError for an unknown platform, InputError for a folder that holds something else, MachineError where
    pip is missing, the disk too small, or a wheel not to be had.
    """
    target = _target(platform)
    directory = directory.expanduser().resolve()
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file", hint="name a folder that is not there yet")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / airgap_text.CHECKSUMS).is_file():
        raise InputError(
            f"{directory} holds files that are not of an earlier collection; they would be replaced",
            hint="name a folder that is empty or not there yet",
        )
    pip = _pip(python or sys.executable)
    with tempfile.TemporaryDirectory(prefix="modelyard-") as scratch:
        sources = read_sources(Host())
        source = build if platform is None else _locked_for(build, target, Path(scratch) / "project", sources, uv)
        found = locked.read(source, uv=uv)
        if found.missing_files:
            raise MachineError(
                f"these wheels came from a folder that is gone: {', '.join(found.missing_files)}",
                hint=f"put the folder back, or: modelyard env repair {name}",
            )
        lines = _needed(found, target if platform is not None else None, Path(scratch), uv)
        with _becoming(directory) as folder:
            _check_space(_size(found, lines), folder)
            _download(pip, found, lines, target, sources, folder / "wheels")
            brings_uv = any(line.startswith("uv==") for line in lines)
            subject = airgap_text.Subject(name, framework, device, target.name, found.python, brings_uv)
            _describe(folder, lines, subject)
    return directory


def _target(name: str | None) -> Platform:
    if name is None:
        return _here()
    if name not in PLATFORMS:
        near = difflib.get_close_matches(name.lower(), PLATFORMS, n=1, cutoff=0.4)
        raise UsageError(
            f"there is no platform {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint="--platform " + "|".join(PLATFORMS),
        )
    return PLATFORMS[name]


def _here() -> Platform:
    machine = host_platform.machine()
    if sys.platform == "linux":
        library, version = host_platform.libc_ver()
        parts = version.split(".")
        minor = int(parts[1]) if library == "glibc" and len(parts) > 1 and parts[1].isdigit() else _GLIBC_FLOOR
        return _linux(machine, minor)
    name = "macos-arm64" if sys.platform == "darwin" else "windows-x86_64"
    return PLATFORMS[name]


def _locked_for(build: Path, target: Platform, project: Path, sources: Sources, uv: str | None) -> Path:
    """`build` if its lock is for `target`, else a copy of its project locked for it."""
    locked.check(build)
    text = (build / "pyproject.toml").read_text(encoding="utf-8")
    environments = tomllib.loads(text).get("tool", {}).get("uv", {}).get("environments", [])
    if not environments or environments == [target.marker]:
        return build
    shutil.copytree(build / "packages", project / "packages")
    shutil.copyfile(build / "uv.lock", project / "uv.lock")  # its versions are preferred
    text = re.sub(r"(?ms)^environments = \[.*?\]$", lambda _: f'environments = ["{target.marker}"]', text)
    write_text(project / "pyproject.toml", text)
    Uv(uv, variables=uv_variables(sources)).run(["lock", *uv_arguments(sources)], project, ignore)
    return project


def _needed(found: Locked, target: Platform | None, scratch: Path, uv: str | None) -> tuple[str, ...]:
    """The requirements that `target` installs, without markers: ``name==version --hash=…``, sorted."""
    command = ["sync", "--frozen", "--offline", "--dry-run", "--no-install-project", "--no-python-downloads"]
    if target is not None:
        command += ["--python-platform", target.uv]
    interpreter = _interpreter(found.folder / ".venv")
    command += ["--python", str(interpreter) if interpreter else found.python]
    # An environment that is not there makes uv name every package.
    variables = {"UV_PROJECT_ENVIRONMENT": str(scratch / "none")}
    said = Uv(uv, variables=variables).run(command, found.folder, ignore)
    pins = [pin for pin in (re.match(r" \+ ([\w.-]+)==(\S+)", line) for line in said) if pin]
    own = locked.wheel_name(found.own_wheel.name)  # uv names it by its version or by its file, as it likes
    wanted = {(normalised(pin[1]), pin[2]) for pin in pins} | {own}
    lines = {own: f"{'=='.join(own)} --hash=sha256:{file_sha256(found.own_wheel)}"}
    for line in found.requirements:
        requirement, *hashes = line.split(" --hash=")
        pin = requirement.split(" ;")[0].strip()
        if "==" in pin:
            lines[locked.pin_of(pin)] = " --hash=".join((pin, *hashes))
    lost = wanted - lines.keys()
    if lost:
        names = ", ".join("==".join(each) for each in sorted(lost))
        raise MachineError(
            f"the lock in {found.folder} gives no pinned release with a hash for {names}",
            hint="modelyard env repair NAME builds the environment again",
        )
    return tuple(lines[each] for each in sorted(wanted))


def _interpreter(environment: Path) -> Path | None:
    names = ("bin/python", "Scripts/python.exe")
    return next((environment / each for each in names if (environment / each).exists()), None)


def _pip(python: str) -> list[str]:
    """The command of pip. Raises MachineError where that Python has none."""
    command = [python, "-m", "pip"]
    try:
        ended = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{python} does not start: {error}", hint="choose another Python with --python") from error
    if ended.returncode != 0:
        raise MachineError(
            f"wheels are downloaded by pip, and {python} has none",
            hint=f"{python} -m ensurepip, or: uv pip install --python {python} pip",
        )
    return command


def _size(found: Locked, lines: tuple[str, ...]) -> int:
    """Bytes of the largest wheel of each package: an upper bound, since the lock does not say which fits."""
    wanted = {locked.pin_of(line) for line in lines}
    lock = tomllib.loads((found.folder / "uv.lock").read_text(encoding="utf-8"))
    total = sum(each.stat().st_size for each in (found.own_wheel, *found.local_files))
    for package in lock.get("package", []):
        if (normalised(str(package.get("name"))), str(package.get("version"))) in wanted:
            total += max((int(wheel.get("size", 0)) for wheel in package.get("wheels", [])), default=0)
    return total


def _check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise MachineError(
            f"the wheels take up to {needed / 1e9:.2f} GB and {folder.parent} has {free / 1e9:.2f} GB free",
            hint="free some space or name a folder on another disk",
        )


def _download(
    pip: list[str], found: Locked, lines: tuple[str, ...], target: Platform, sources: Sources, wheels: Path
) -> None:
    wheels.mkdir()
    shutil.copyfile(found.own_wheel, wheels / found.own_wheel.name)
    folders = sorted({str(each.parent) for each in found.local_files})
    options = [f"--extra-index-url {each.address}" for each in found.indexes if each.name]
    others = [line for line in lines if not line.startswith("modelyard==")]
    wanted = write_text(wheels.parent / "wanted.txt", "\n".join((*options, *others)) + "\n")
    version = found.python.replace(".", "")
    command = [
        *pip, "download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(wheels),
        "--implementation", "cp", "--python-version", found.python, "--abi", f"cp{version}",
        *(part for tag in target.tags for part in ("--platform", tag)),
        *(part for folder in folders for part in ("--find-links", folder)),
        "--disable-pip-version-check", "--progress-bar", "off", "--requirement", str(wanted),
    ]  # fmt: skip
    environ = dict(os.environ) | _logins(found) | _pip_variables(sources) | {"PIP_REQUIRE_VIRTUALENV": "0"}
    try:
        ended = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=DOWNLOAD_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MachineError(
            f"the download did not end within {DOWNLOAD_SECONDS // 3600} hours",
            hint="type the same command again; pip keeps what it has in its cache",
        ) from error
    if ended.returncode != 0:
        said = [line for line in ended.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise MachineError(
            f"pip could not collect the wheels for {target.name}: {without_secrets(chr(10).join(said[-12:]))}",
            hint="modelyard doctor shows what the indexes answer; then type the same command again",
        )
    wanted.unlink()


def _pip_variables(sources: Sources) -> dict[str, str]:
    """The person's indexes for pip, with their logins, whether pip or uv was told of them. Not as arguments: other
    users of a machine can read those."""
    said = {"PIP_INDEX_URL": sources.index_url, "PIP_EXTRA_INDEX_URL": " ".join(sources.extra_index_urls)}
    return {name: value for name, value in said.items() if value}


def _logins(found: Locked) -> dict[str, str]:
    """The logins that the project's own addresses carry, under the names that the requirements use."""
    project = tomllib.loads((found.folder / "pyproject.toml").read_text(encoding="utf-8"))
    result = {}
    addresses = {str(each.get("name", "")): str(each.get("url", "")) for each in project["tool"]["uv"].get("index", [])}
    for index in found.indexes:
        parts = urlsplit(addresses.get(index.name, ""))
        if index.variables:
            result[index.variables[0]] = unquote(parts.username or "")
            result[index.variables[1]] = unquote(parts.password or "")
    return {name: value for name, value in result.items() if name not in os.environ}


def _describe(folder: Path, lines: tuple[str, ...], subject: airgap_text.Subject) -> None:
    text = "".join(line.replace(" --hash=", " \\\n    --hash=") + "\n" for line in lines)
    write_text(folder / "requirements.txt", text)
    present = {locked.wheel_name(each.name) for each in (folder / "wheels").iterdir()}
    lost = [line.split(" ")[0] for line in lines if locked.pin_of(line) not in present]
    if lost:
        raise MachineError(
            f"pip ended without an error, but these wheels are not there: {', '.join(lost)}",
            hint="type the same command again",
        )
    write_text(folder / "INSTALL.md", airgap_text.install_text(subject))
    sums = [
        f"{file_sha256(each)}  {each.relative_to(folder).as_posix()}\n"
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    ]
    write_text(folder / airgap_text.CHECKSUMS, "".join(sums))


@contextmanager
def _becoming(directory: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `directory` when the block ends without an error."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        for left in directory.parent.glob(f"{directory.name}{TEMPORARY_MARK}*"):
            shutil.rmtree(left)
        temporary = temporary_path(directory)
        temporary.mkdir()
    except OSError as error:
        raise MachineError(
            f"cannot write {directory}: {error.strerror}", hint="name a folder that you may write to"
        ) from error
    try:
        yield temporary
        for each in temporary.rglob("*"):
            if each.is_file():
                flush_to_disk(each)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
        flush_to_disk(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
