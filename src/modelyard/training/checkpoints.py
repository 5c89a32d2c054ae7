"""Checkpoints on disk: whole or not there, verified before use, the old ones removed.

    checkpoints/<step>/        what the learner saved, progress.json, and manifest.json with their SHA-256
    checkpoints/last.json      {"step": 400}: the newest
    checkpoints/best.json      {"step": 300}: the one whose evaluation was the best

Pointers are small files, not links, because Windows makes no links without rights.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelyard.engines.base import Learner
from modelyard.errors import InputError, MachineError
from modelyard.runs.files import folder_sha256, remove_leftovers, write_folder, write_json
from modelyard.training.progress import Progress

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
# File headers, JSON files and the file system's own blocks.
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint."""

    path: Path
    progress: Progress

    @property
    def step(self) -> int:
        return self.progress.step


@dataclass(frozen=True)
class FoundCheckpoint:
    """The newest whole checkpoint, if any, and what was wrong with newer ones."""

    checkpoint: Checkpoint | None
    notes: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one training.

    keep: newest checkpoints to keep, besides the best.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending; nothing is said about their files."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.is_dir() and entry.name.isdecimal())

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, learner: Learner, progress: Progress) -> Path:
        """Write the checkpoint of the current step, move the pointers, remove what is too old.

        Raises MachineError when the disk has no room for it or cannot be written; older ones stay whole then.
        """
        self._check_space(learner)

        def write(folder: Path) -> None:
            learner.save(folder)
            write_json(folder / PROGRESS, progress.to_json())
            write_json(folder / MANIFEST, folder_sha256(folder))

        path = write_folder(self.path(progress.step), write)
        self.point(progress)
        self._remove_old(best=progress.best_step)
        return path

    def prepare(self, learner: Learner) -> None:
        """Clear away what a killed process left half-written.

        Raises MachineError when a checkpoint of `learner` would not fit on the disk; now, not after hours.
        """
        remove_leftovers(self.folder)
        self._check_space(learner)

    def _check_space(self, learner: Learner) -> None:
        needed = self._expected_bytes(learner)
        existing = next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise MachineError(
                f"a checkpoint takes {needed / 1e9:.2f} GB and {existing} has {free / 1e9:.2f} GB free",
                hint="free some space, then type the same command with --resume; or use --run FOLDER",
            )

    def _expected_bytes(self, learner: Learner) -> int:
        """The newest one's size; before the first, float32 weights and two moments of those that learn."""
        steps = self.steps()
        if steps:
            return SPARE_BYTES + sum(file.stat().st_size for file in self.path(steps[-1]).rglob("*") if file.is_file())
        return SPARE_BYTES + 4 * learner.num_parameters + 8 * learner.num_trainable_parameters

    def point(self, progress: Progress) -> None:
        """Let ``last`` and ``best`` point where `progress` says."""
        write_json(self.folder / "last.json", {"step": progress.step})
        if progress.best_step is not None:
            write_json(self.folder / "best.json", {"step": progress.best_step})
        else:
            (self.folder / "best.json").unlink(missing_ok=True)

    def pointed(self, name: Literal["last", "best"]) -> Path | None:
        """The folder that a pointer names, or None when there is no such pointer or folder."""
        pointer = self.folder / f"{name}.json"
        if not pointer.is_file():
            return None
        path = self.path(int(json.loads(pointer.read_text(encoding="utf-8"))["step"]))
        return path if path.is_dir() else None

    def newest_complete(self) -> FoundCheckpoint:
        """The newest checkpoint whose files are what was written; the notes name damaged ones after it."""
        notes: list[str] = []
        for step in reversed(self.steps()):
            damage = damage_of(self.path(step))
            if damage is None:
                value = json.loads((self.path(step) / PROGRESS).read_text(encoding="utf-8"))
                progress = Progress.from_json(value, where=str(self.path(step) / PROGRESS))
                return FoundCheckpoint(Checkpoint(self.path(step), progress), tuple(notes))
            notes.append(f"the checkpoint {self.path(step)} is damaged ({damage}); the one before it is used")
        return FoundCheckpoint(None, tuple(notes))

    def verified(self, step: int) -> Path:
        """The folder of `step`. Raises InputError when it is missing or damaged."""
        damage = damage_of(self.path(step))
        if damage is not None:
            raise InputError(
                f"the checkpoint {self.path(step)} cannot be used: {damage}",
                hint="type the same command with --resume to go on from another checkpoint",
            )
        return self.path(step)

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints after `step`: a resume from `step` writes them again."""
        for each in self.steps():
            if each > step:
                shutil.rmtree(self.path(each))

    def _remove_old(self, *, best: int | None) -> None:
        for step in self.steps()[: -self.keep]:
            if step != best:
                shutil.rmtree(self.path(step))


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when each has the SHA-256 of the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    if not isinstance(manifest, dict) or PROGRESS not in manifest:
        return f"{MANIFEST} does not list {PROGRESS}"
    found = folder_sha256(folder)
    for name, digest in manifest.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} has SHA-256 {found[name][:12]}…, expected {digest[:12]}…"
    return None
