"""Whether the files of an environment are those that were installed: every RECORD entry against its hash.

https://packaging.python.org/en/latest/specifications/recording-installed-packages/
Compiled files (``*.pyc``) have no hash and are passed over; Python makes them anew when their source changed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Progress = Callable[[int, int], None]  # (bytes hashed so far, bytes in all)

# missing     the file is not there, or cannot be read
# changed     its size or hash is another one
# conflict    several distributions claim it with different contents
# unowned     it is loaded when Python starts or can shadow a module, and no distribution claims it
# outside     RECORD names a place that is not in this environment; it is not opened
# record      RECORD itself cannot be used
Kind = Literal["missing", "changed", "conflict", "unowned", "outside", "record"]

THREADS = 4  # hashing a large piece frees the interpreter's lock; more threads gain nothing on a disk
LARGE_BYTES = 1 << 20  # measured: handing a smaller file to a thread costs more than hashing it
CHUNK_BYTES = 1 << 20
HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}

# Written by venv makers, or by setuptools' own installation, without an entry in a RECORD.
USUAL = frozenset({"_virtualenv.py", "_virtualenv.pth", "distutils-precedence.pth"})
STARTUP = ("sitecustomize", "usercustomize")  # modules that every Python imports at its start, as a file or a folder
UNSIGNED = ("RECORD", "RECORD.jws", "RECORD.p7s")  # in the folder of metadata, and without a hash by specification


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was installed; `file` as RECORD names it, relative to site-packages."""

    file: str
    distribution: str  # "numpy 2.4.6", several with commas, "" if nobody owns the file
    kind: Kind
    detail: str


@dataclass(frozen=True)
class Claim:
    """One line of a RECORD."""

    file: str
    distribution: str
    algorithm: str  # "" where the line has no hash
    digest: str
    size_bytes: int | None


def check(site_packages: Path, progress: Progress | None = None) -> list[Damage]:
    """Everything in `site_packages` (and the scripts beside it) that is not as it was installed; empty if all is well.

    Never raises for what it meets. `progress` is called from the calling thread.
    """
    try:
        entries = sorted(Path(os.path.normpath(site_packages.absolute())).iterdir())
    except OSError as error:
        return [Damage(".", "", "missing", f"{site_packages} cannot be read: {error.strerror or error}")]
    damages: list[Damage] = []
    claims: dict[str, list[Claim]] = {}  # by place on disk
    root = environment_root(site_packages)
    for metadata in (each for each in entries if each.name.endswith(".dist-info")):
        for each in _record(metadata):
            if isinstance(each, Damage):
                damages.append(each)
                continue
            place = os.path.normpath(os.path.join(metadata.parent, each.file))  # noqa: PTH118 (links stay links)
            if place.startswith(f"{root}{os.sep}"):
                claims.setdefault(os.path.normcase(place), []).append(each)
            else:
                damages.append(Damage(each.file, each.distribution, "outside", f"{place} is not inside {root}"))
    damages += _compare(claims, progress)
    damages += _unowned(entries, claims)
    return sorted(damages, key=lambda each: (each.file, each.distribution))


def environment_root(site_packages: Path) -> Path:
    """The environment's own folder: above ``lib/python3.12/site-packages`` or ``Lib/site-packages``."""
    above = [Path(os.path.normpath(each)) for each in site_packages.absolute().parents]
    marked = next((each for each in above if (each / "pyvenv.cfg").is_file()), None)
    return marked or above[min(2 if above[0].name.startswith("python") else 1, len(above) - 1)]


def _record(metadata: Path) -> Iterator[Claim | Damage]:
    """The lines of one distribution's RECORD that name a file to check; what is wrong with RECORD as damage."""
    name, _, version = metadata.name.removesuffix(".dist-info").rpartition("-")
    distribution = f"{name} {version}".strip()
    file = f"{metadata.name}/RECORD"
    try:
        text = (metadata / "RECORD").read_bytes().decode("utf-8")
    except FileNotFoundError:
        yield Damage(file, distribution, "missing", "without it, the files of this package cannot be checked")
        return
    except (OSError, UnicodeDecodeError) as error:
        yield Damage(file, distribution, "record", f"cannot be read: {error}")
        return
    names = set()
    try:
        for number, row in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1):
            if not row:
                continue
            claim = _claim(row, distribution)
            if claim is None:
                yield Damage(file, distribution, "record", f"line {number} is not 'file,hash,size': {str(row)[:200]}")
                continue
            names.add(claim.file)
            if not claim.algorithm and (claim.file.endswith(".pyc") or _unsigned(claim.file, metadata.name)):
                continue
            yield claim
    except csv.Error as error:
        yield Damage(file, distribution, "record", f"cannot be read: {error}")
    # Both stand in every RECORD, so one that was cut off or emptied mostly lacks them.
    for expected in (file, f"{metadata.name}/METADATA"):
        if expected not in names:
            yield Damage(file, distribution, "record", f"has no entry for {expected}, so it is not whole")
    if text and not text.endswith(("\n", "\r")):
        yield Damage(file, distribution, "record", "its last line does not end, so it is not whole")


def _claim(row: list[str], distribution: str) -> Claim | None:
    if len(row) != 3 or not row[0] or "\0" in row[0]:
        return None
    file, hashed, size = row
    algorithm, equals, digest = hashed.partition("=")
    if (hashed and not (equals and digest and algorithm in HASHES)) or not re.fullmatch(r"[0-9]{0,18}", size):
        return None
    return Claim(file, distribution, algorithm, digest, int(size) if size else None)


def _unsigned(file: str, metadata: str) -> bool:
    return file in [f"{metadata}/{each}" for each in UNSIGNED]


def _compare(claims: dict[str, list[Claim]], progress: Progress | None) -> list[Damage]:
    """Sizes first, then the hashes of all files whose size is right, large files in a few threads."""
    damages: list[Damage] = []
    to_hash: list[tuple[int, str, list[Claim]]] = []
    for place, claimed in claims.items():
        size, problem = _size(place)
        if problem:
            damages.append(_damage(claimed, "missing", problem))
            continue
        sizes = sorted({each.size_bytes for each in claimed if each.size_bytes is not None})
        if sizes and size not in sizes and len({each.digest for each in claimed}) == 1:
            damages.append(_damage(claimed, "changed", f"{size:,} bytes instead of {sizes[0]:,}"))
        elif any(each.algorithm for each in claimed):
            to_hash.append((size, place, claimed))
    to_hash.sort(key=lambda each: -each[0])
    num_large = sum(size >= LARGE_BYTES for size, _, _ in to_hash)
    total, done = sum(size for size, _, _ in to_hash), 0
    with ThreadPoolExecutor(THREADS) as pool:
        large = pool.map(_hashed, to_hash[:num_large])  # starts now, and goes on while this thread does the small ones
        small = map(_hashed, to_hash[num_large:])
        order = to_hash[num_large:] + to_hash[:num_large]
        for (size, _, _), damage in zip(order, itertools.chain(small, large), strict=True):
            if damage is not None:
                damages.append(damage)
            done += size
            if progress is not None:
                progress(done, total)
    return damages


def _size(place: str) -> tuple[int, str]:
    """(bytes, "") of a file, or (0, why it is none)."""
    try:
        found = Path(place).stat()
    except FileNotFoundError:
        return 0, "is not there"
    except (OSError, ValueError) as error:
        return 0, f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return (found.st_size, "") if stat.S_ISREG(found.st_mode) else (0, "is no regular file")


def _hashed(work: tuple[int, str, list[Claim]]) -> Damage | None:
    """Compare one file with what all distributions that claim it recorded."""
    _, place, claimed = work
    try:
        actual = {each: _digest(place, each) for each in sorted({each.algorithm for each in claimed if each.algorithm})}
    except OSError as error:
        return _damage(claimed, "missing", f"cannot be read: {error.strerror or error}")
    hashed = [each for each in claimed if each.algorithm]
    right = [each for each in hashed if actual[each.algorithm] == each.digest.rstrip("=")]
    wrong = [each for each in hashed if each not in right]
    if not wrong:
        return None
    if len({(each.algorithm, each.digest) for each in hashed}) > 1:
        winner = f"that of {right[0].distribution}" if right else "that of none of them"
        return _damage(hashed, "conflict", f"each has its own content of this file; the one on disk is {winner}")
    return _damage(wrong, "changed", f"its {wrong[0].algorithm} is not the recorded one")


def _digest(place: str, algorithm: str) -> str:
    """The hash of a file as RECORD writes it: URL-safe base64 without padding."""
    state = HASHES[algorithm]()
    with Path(place).open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return base64.urlsafe_b64encode(state.digest()).rstrip(b"=").decode()


def _damage(claims: list[Claim], kind: Kind, detail: str) -> Damage:
    owners = ", ".join(dict.fromkeys(each.distribution for each in claims))
    return Damage(claims[0].file, owners, kind, detail)


def _unowned(entries: list[Path], owned: Collection[str]) -> Iterator[Damage]:
    """Files at the top of site-packages that act on every start of Python or shadow a module, and belong to nobody."""
    for each in entries:
        startup = each.name.partition(".")[0] in STARTUP
        if each.name in USUAL or not (startup or each.suffix in (".py", ".pth")):
            continue
        places = [each, each / "__init__.py"] if each.is_dir() else [each]
        if not any(os.path.normcase(os.path.normpath(place)) in owned for place in places):
            what = "runs at every start of Python" if startup or each.suffix == ".pth" else "can be imported"
            yield Damage(each.name, "", "unowned", f"no installed package has this file, and it {what}")
