"""Datasets of the Hugging Face hub and dataset folders saved to disk, through the optional package `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelyard.data.sources import BadRow, Role, Row, Source, missing_column, shortened
from modelyard.errors import DataError, InputError, MachineError

LOCAL_CHOICES = (
    "a CSV, TSV, JSONL or Parquet file, a folder with one subfolder per class, or a dataset saved with save_to_disk"
)
BATCH_ROWS = 256


def open_hub_dataset(name: str, role: Role, columns: Sequence[str]) -> Source:
    """The split `role` of the hub's dataset `name`; it is downloaded once and then read from the cache.

    Raises MachineError without the package `datasets`, InputError when the hub or the dataset cannot be
    reached.
    """
    datasets = _datasets_package(f"{name!r} is no file or folder here, so it is read as a dataset id of the hub, which")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the package raises a dozen kinds, of its own and of three network libraries
        raise InputError(
            f"the dataset {name!r} is no file or folder here and cannot be loaded from the hub "
            f"({type(error).__name__}: {shortened(str(error), 160)})",
            hint=f"check the id and the network, or give data.{role} something local: {LOCAL_CHOICES}",
        ) from error
    return _source(name, loaded, role, columns)


def open_saved_dataset(folder: Path, role: Role, columns: Sequence[str]) -> Source:
    """A folder written by `save_to_disk`, of one dataset or of several splits.

    Raises MachineError when `datasets` is not installed, DataError when the folder is damaged.
    """
    datasets = _datasets_package(f"{folder.name!r} is a saved dataset, which")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"the saved dataset cannot be read ({type(error).__name__}: {shortened(str(error), 160)})",
            hint="save it again with save_to_disk",
            where=str(folder),
        ) from error
    return _source(f"{folder.name}/", loaded, role, columns)


def _datasets_package(what: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise MachineError(
            f"{what} needs the package `datasets` ({error})", hint="pip install 'modelyard[datasets]'"
        ) from error


def _source(name: str, loaded: Any, role: Role, columns: Sequence[str]) -> Source:
    notes: tuple[str, ...] = ()
    if isinstance(loaded, Mapping):
        splits = sorted(map(str, loaded))
        chosen = role if role in splits else splits[0] if len(splits) == 1 else None
        if chosen is None:
            raise DataError(
                f"the dataset {name!r} has no split {role!r}; its splits are {', '.join(splits)}",
                hint=f"leave out data.{role}" if role != "train" else "save the split you want with save_to_disk",
            )
        unused = [split for split in ("validation", "test") if role == "train" and split in splits]
        if unused:
            listed = ", ".join(unused)
            notes = (
                f"the dataset {name} has its own {listed}: it is used only if data.{unused[0]} names the dataset too",
            )
        loaded = loaded[chosen]
        name = f"{name}@{chosen}"
    for column in columns:
        if column not in loaded.column_names:
            problem, hint = missing_column(column, loaded.column_names)
            raise DataError(f"column {column!r}: {problem}", hint=hint, where=name)
    class_names = {
        column: tuple(loaded.features[column].names) for column in columns if hasattr(loaded.features[column], "names")
    }
    selected = loaded.select_columns(list(dict.fromkeys(columns)))

    def read() -> Iterator[Row | BadRow]:
        number = 0
        for batch in selected.iter(BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                number += 1
                row = dict(zip(batch, values, strict=True))
                for column, names in class_names.items():
                    index = row[column]
                    # Hubs mark "no label" with -1.
                    row[column] = names[index] if index is not None and 0 <= index < len(names) else None
                yield Row(name, number, row)

    files = tuple(Path(entry["filename"]) for entry in loaded.cache_files)
    return Source(name, read, files, str(loaded._fingerprint), notes)
