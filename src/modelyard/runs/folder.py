"""The run folder: one place on disk for everything that a recipe produced.

recipe.yaml          as resolved, every derived value with its reason
manifest.json        versions, machine, what each stage was made from, artefacts with SHA-256
events.jsonl         what happened
data/                report of the data check, rejected rows
plan.json            the model's size and how it is trained on this device
checkpoints/<step>/  what a resume needs
model/               the best model in Hugging Face format
evaluation/          metrics.json, predictions.parquet, report.html
bundle/              what is deployed
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelyard.errors import InputError
from modelyard.runs.files import file_sha256, folder_sha256, remove_leftovers, space_errors, write_json
from modelyard.runs.lock import held

FORMAT = 1


class RunFolder:
    """Paths of a run, and the manifest that says which stage was made from what."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.manifest = path / "manifest.json"
        self.events = path / "events.jsonl"
        self.data = path / "data"
        self.plan = path / "plan.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.evaluation = path / "evaluation"
        self.report = path / "evaluation" / "report.html"
        self.bundle = path / "bundle"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that exists. Raises InputError when `path` holds none."""
        run = cls(path)
        if not run.recipe.is_file():
            found = sorted(p.parent.name for p in path.parent.glob("*/recipe.yaml")) if path.parent.is_dir() else []
            beside = f"; runs beside it: {', '.join(found[:5])}" if found else ""
            raise InputError(
                f"{path} is not a run: it has no recipe.yaml{beside}",
                hint="name the folder of a run, or make one with `modelyard run RECIPE`",
            )
        return run

    def exists(self) -> bool:
        return self.manifest.is_file()

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or an empty one. Raises InputError for one that a newer modelyard wrote or that is damaged."""
        if not self.manifest.is_file():
            return {"format": FORMAT, "stages": {}}
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            written = int(manifest["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.manifest} is damaged: {error}",
                hint="start again in another folder with `--run FOLDER`, or remove this one",
            ) from error
        if written > FORMAT:
            raise InputError(
                f"{self.path} was made by a newer modelyard (format {written}, this one reads {FORMAT})",
                hint="pip install --upgrade modelyard",
            )
        return dict(manifest)

    def update_manifest(self, **fields: Any) -> None:
        """Set top-level fields of the manifest."""
        write_json(self.manifest, {**self.read_manifest(), **fields})

    def stage_key(self, stage: str) -> str | None:
        """What the stage was last made from, or None if it never ended."""
        record = self.read_manifest()["stages"].get(stage)
        return None if record is None else str(record["key"])

    def stage_is_current(self, stage: str, key: str) -> bool:
        """Whether the stage was made from the same inputs and its files are still what they were."""
        record = self.read_manifest()["stages"].get(stage)
        return record is not None and record["key"] == key and self.changed_artefact(stage) is None

    def changed_artefact(self, stage: str) -> str | None:
        """The first file of a stage that is missing or differs from its SHA-256; None if all are whole."""
        record = self.read_manifest()["stages"].get(stage)
        for name, digest in (record or {}).get("artefacts", {}).items():
            file = self.path / name
            if not file.is_file() or file_sha256(file) != digest:
                return str(name)
        return None

    def record_stage(self, stage: str, key: str, artefacts: Mapping[str, Path], **facts: Any) -> None:
        """Note that a stage ended. `artefacts` are files or folders below the run."""
        digests: dict[str, str] = {}
        for path in artefacts.values():
            relative = path.relative_to(self.path).as_posix()
            if path.is_dir():
                digests |= {f"{relative}/{name}": digest for name, digest in folder_sha256(path).items()}
            else:
                digests[relative] = file_sha256(path)
        manifest = self.read_manifest()
        manifest["stages"][stage] = {"key": key, "artefacts": digests, **facts}
        write_json(self.manifest, manifest)

    def forget_stages(self, *stages: str) -> None:
        """Drop the records of stages that are about to be made anew."""
        manifest = self.read_manifest()
        for stage in stages:
            manifest["stages"].pop(stage, None)
        write_json(self.manifest, manifest)

    def model_key(self) -> str:
        """SHA-256 of the trained weights: what later stages are made from."""
        return file_sha256(self.model / "model.safetensors")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the lock goes with the process, however that ends.

        Raises InputError when another process works in the folder.
        """
        with space_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".lock").touch()
        taken = False
        try:
            with held(self.path / ".lock", self._busy):
                taken = True
                remove_leftovers(self.path)
                yield
        finally:
            if taken and [entry.name for entry in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                self.path.rmdir()

    def _busy(self, holder: str) -> InputError:
        return InputError(
            f"another process ({holder}) is working in {self.path}",
            hint="wait for it, or choose another folder with --run FOLDER",
        )
