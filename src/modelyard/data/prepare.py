"""From the recipe's data section to prepared splits: check, divide, tokenise, keep in the cache.

Two passes over the sources: the first checks every row and is quick, so that errors come before the slow
work; the second tokenises block by block and writes one Arrow file per split. Neither holds the texts in
memory.

Legend: N usable examples of all sources, in the order of reading.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modelyard.data.assign import UNUSED, Assignment, assign
from modelyard.data.cache import content_hashes, is_sound, locked, seal
from modelyard.data.check import (
    DataReport,
    Repetition,
    find_repetition,
    length_report,
    warnings_of,
)
from modelyard.data.examples import Example, text_cleaner
from modelyard.data.prepared import SCHEMA, Prepared, Split, example_block
from modelyard.data.scan import Progress, Scan, SourceOfRole, open_sources, read_all, scan
from modelyard.data.sources import BadRow
from modelyard.data.splits import SPLIT_NAMES, TRAIN
from modelyard.data.tokenizer import Encoded, TextTokenizer
from modelyard.errors import DataError
from modelyard.recipe.schema import DataSection
from modelyard.runs.files import value_sha256, write_folder, write_json, write_with
from modelyard.tasks.text_classification import TextClassification

# Part of the cache's key: raise it when the files or what goes into them change.
FORMAT_VERSION = 1
# A block is what is tokenised at once: enough for all cores, while the library's ~150 bytes a token stay below 100 MB.
BLOCK_ROWS = 8192
BLOCK_CHARACTERS = 1_500_000
REJECTED = "rejected.jsonl"


def prepare(
    data: DataSection,
    task: TextClassification,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    on_too_long: Literal["truncate", "error"],
    cache_folder: Path,
    rejected_path: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Check, divide and tokenise the data, or take all that from `cache_folder` when it was done before.

    max_length: tokens kept of each text, special ones included. rejected_path: where the skipped rows are
    written, one JSON object a line; there is no such file when none was skipped. progress: told (what, rows
    done, rows in all).

    Raises DataError for data that cannot be used, MachineError for a full disk or a missing package.
    """
    sources = open_sources(data, task)
    key = _fingerprint(sources, data, task, tokenizer, max_length, cache_folder)
    folder = cache_folder / key[:32]
    if not is_sound(folder):

        def tell_waiting() -> None:
            if progress:
                progress("waiting for another process that prepares the same data", 0, None)

        with locked(folder, tell_waiting):
            if not is_sound(folder):
                build = _Build(data, task, tokenizer, max_length, sources, rejected_path, progress)
                write_folder(folder, build.write)
    _publish_rejected(folder, rejected_path)
    prepared = _opened(folder, key, tokenizer)
    if on_too_long == "error" and prepared.report.num_truncated:
        longest = max(lengths.quantiles["max"] for lengths in prepared.report.lengths.values())
        raise DataError(
            f"{prepared.report.num_truncated} texts are longer than max_length {max_length} tokens; "
            f"this is the first, the longest has {longest} tokens",
            hint="raise design.max_length as far as the model allows, or type --set design.on_too_long=truncate",
            where=prepared.report.first_truncated or "",
        )
    return prepared


def prepare_texts(texts: Sequence[str], tokenizer: TextTokenizer, max_length: int, remove: str | None) -> Encoded:
    """Clean and encode texts for prediction, exactly as `prepare` does for training."""
    clean = text_cleaner(remove)
    return tokenizer.encode_batch([clean(text) for text in texts] if clean else texts, max_length)


@dataclass(frozen=True)
class TrainingTexts:
    """The cleaned texts of the train part alone, to learn a tokenizer from; can be iterated again and again."""

    sources: list[SourceOfRole]
    parts: NDArray[np.int8]

    def __iter__(self) -> Iterator[str]:
        examples = (row for _, row in read_all(self.sources) if not isinstance(row, BadRow))
        for example, part in zip(examples, self.parts, strict=True):
            if part == TRAIN:
                yield example.text


def training_texts(data: DataSection, task: TextClassification, progress: Progress | None = None) -> TrainingTexts:
    """Scan and divide the data as `prepare` will. Raises what `prepare` raises."""
    sources = open_sources(data, task)
    found = scan(sources, skip_bad=data.on_bad_row == "skip", rejected=None, progress=progress)
    return TrainingTexts(sources, assign(found, data, task).parts)


def _fingerprint(
    sources: list[SourceOfRole],
    data: DataSection,
    task: TextClassification,
    tokenizer: TextTokenizer,
    max_length: int,
    cache_folder: Path,
) -> str:
    """SHA-256 of all that the prepared examples follow from; where the files lie is not among it."""
    hashes = content_hashes([entry.source for entry in sources], cache_folder / "content.json")
    content = [
        {
            "role": entry.role,
            "name": entry.source.name,
            "identity": entry.source.identity,
            "files": [f"{file.parent.name}/{file.name}" for file in entry.source.files[1:]],
            "sha256": sha256,
        }
        for entry, sha256 in zip(sources, hashes, strict=True)
    ]
    return value_sha256(
        {
            "format": FORMAT_VERSION,
            "content": content,
            "data": data.model_dump(mode="json", exclude={"train", "validation", "test"}),
            "label_names": dict(task.label_names),
            "tokenizer": tokenizer.fingerprint,
            "max_length": max_length,
        }
    )


@dataclass(frozen=True)
class _Build:
    """Fills one folder of the cache."""

    data: DataSection
    task: TextClassification
    tokenizer: TextTokenizer
    max_length: int
    sources: list[SourceOfRole]
    rejected_path: Path | None
    progress: Progress | None

    def write(self, folder: Path) -> None:
        before = self._file_states()
        skip_bad = self.data.on_bad_row == "skip"
        try:
            found = scan(self.sources, skip_bad=skip_bad, rejected=folder / REJECTED, progress=self.progress)
        finally:
            _publish_rejected(folder, self.rejected_path)
        assigned = assign(found, self.data, self.task)
        used = np.flatnonzero(assigned.parts != UNUSED)
        repetition = find_repetition(found.texts[used], assigned.classes[used], assigned.parts[used])
        shown = {*repetition.duplicates, *repetition.conflicting, *chain(*repetition.leaking.values())}
        places, lengths, first_truncated = self._tokenise(folder, assigned, {int(used[at]): at for at in shown})
        if self._file_states() != before:
            raise DataError(
                "the data changed while it was read",
                hint="wait until nothing writes to the files, then type the same command again",
                where=self.data.train,
            )
        report = self._report(found, assigned, repetition, places, lengths, first_truncated)
        write_json(folder / "report.json", report.to_json())
        write_json(
            folder / "prepared.json",
            {
                "labels": assigned.labels,
                "num_prefix_tokens": self.tokenizer.num_prefix_tokens,
                "num_suffix_tokens": self.tokenizer.num_suffix_tokens,
            },
        )
        seal(folder)

    def _file_states(self) -> list[tuple[int, int]]:
        stats = [file.stat() for entry in self.sources for file in entry.source.files]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    def _tokenise(
        self, folder: Path, assigned: Assignment, shown: Mapping[int, int]
    ) -> tuple[dict[int, str], dict[str, NDArray[np.int32]], str | None]:
        """The second pass. shown: positions in the order of reading whose places the report needs, and their
        keys there.

        Returns these places, the full lengths by split, and the place of the first text that was cut.
        """
        total = int((assigned.parts != UNUSED).sum())
        places: dict[int, str] = {}
        lengths: dict[str, list[NDArray[np.int32]]] = {}
        first_truncated: str | None = None
        done = 0
        with ExitStack() as open_files:
            writers: dict[int, Any] = {}
            for part in sorted(set(assigned.parts.tolist()) - {UNUSED}):
                file = open_files.enter_context((folder / f"{SPLIT_NAMES[part]}.arrow").open("wb"))
                writers[part] = open_files.enter_context(pa.ipc.new_file(file, SCHEMA))
            for positions, examples, encoded in self._encoded_blocks(assigned.parts):
                sources = [f"{example.source}:{example.number}" for example in examples]
                for at, position in enumerate(positions):
                    if position in shown:
                        places[shown[position]] = sources[at]
                cut = np.flatnonzero(encoded.full_lengths > self.max_length)
                if first_truncated is None and len(cut):
                    first_truncated = sources[cut[0]]
                for part, writer in writers.items():
                    rows = np.flatnonzero(assigned.parts[positions] == part)
                    if len(rows):
                        block_lengths = encoded.full_lengths[rows]
                        lengths.setdefault(SPLIT_NAMES[part], []).append(block_lengths)
                        block = example_block(
                            [examples[row].text for row in rows],
                            assigned.classes[positions][rows],
                            [encoded.ids[row] for row in rows],
                            block_lengths,
                            [sources[row] for row in rows],
                        )
                        writer.write_batch(block)
                done += len(examples)
                if self.progress:
                    self.progress("tokenising", done, total)
        return places, {name: np.concatenate(blocks) for name, blocks in lengths.items()}, first_truncated

    def _encoded_blocks(self, parts: NDArray[np.int8]) -> Iterator[tuple[NDArray[np.int64], list[Example], Encoded]]:
        """Blocks with their token ids; while one is written, the next is tokenised in a second thread."""
        with ThreadPoolExecutor(1) as thread:
            waiting: tuple[NDArray[np.int64], list[Example], Future[Encoded]] | None = None
            for positions, examples in self._blocks(parts):
                texts = [example.text for example in examples]
                encoded = thread.submit(self.tokenizer.encode_batch, texts, self.max_length)
                if waiting:
                    yield *waiting[:2], waiting[2].result()
                waiting = (positions, examples, encoded)
            if waiting:
                yield *waiting[:2], waiting[2].result()

    def _blocks(self, parts: NDArray[np.int8]) -> Iterator[tuple[NDArray[np.int64], list[Example]]]:
        """Blocks of the used examples, with their positions in the order of reading."""
        positions: list[int] = []
        block: list[Example] = []
        characters = 0
        examples = (row for _, row in read_all(self.sources) if not isinstance(row, BadRow))
        for position, (example, part) in enumerate(zip(examples, parts, strict=True)):
            if part == UNUSED:
                continue
            positions.append(position)
            block.append(example)
            characters += len(example.text)
            if len(block) == BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
                yield np.array(positions), block
                positions, block, characters = [], [], 0
        if block:
            yield np.array(positions), block

    def _report(
        self,
        found: Scan,
        assigned: Assignment,
        repetition: Repetition,
        places: Mapping[int, str],
        lengths: Mapping[str, NDArray[np.int32]],
        first_truncated: str | None,
    ) -> DataReport:
        num_examples = int((assigned.parts != UNUSED).sum())
        ordered = [name for name in SPLIT_NAMES if name in lengths]
        classes = {}
        for name in ordered:
            here = assigned.classes[assigned.parts == SPLIT_NAMES.index(name)]
            counts = np.bincount(here, minlength=len(assigned.labels))
            classes[name] = {label: int(counts[at]) for at, label in enumerate(assigned.labels)}
        report = DataReport(
            sources=tuple(entry.source.name for entry in self.sources),
            labels=assigned.labels,
            max_length=self.max_length,
            num_rows=found.num_rows,
            num_examples=num_examples,
            num_skipped=sum(found.skipped.values()),
            num_unused=len(found) - num_examples,
            skipped=dict(found.skipped.most_common()),
            classes=classes,
            lengths={name: length_report(lengths[name], self.max_length) for name in ordered},
            num_duplicates=repetition.num_duplicates,
            duplicate_places=tuple(places[at] for at in repetition.duplicates),
            num_conflicting_texts=repetition.num_conflicting_texts,
            conflicting_places=tuple(places[at] for at in repetition.conflicting),
            leakage=repetition.leakage,
            leaking_places={name: tuple(places[at] for at in rows) for name, rows in repetition.leaking.items()},
            first_truncated=first_truncated,
        )
        notes = [*assigned.notes, *(note for entry in self.sources for note in entry.source.notes)]
        return replace(report, warnings=warnings_of(report, notes))


def _publish_rejected(folder: Path, rejected_path: Path | None) -> None:
    """Copy the list of skipped rows to where the caller wants it; an older one is removed when none was skipped."""
    if rejected_path is None:
        return
    listed = folder / REJECTED
    if listed.is_file():
        write_with(rejected_path, lambda temporary: _copy(listed, temporary))
    else:
        rejected_path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _opened(folder: Path, key: str, tokenizer: TextTokenizer) -> Prepared:
    described = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    splits = {
        name: Split.open(
            folder / f"{name}.arrow",
            num_prefix_tokens=described["num_prefix_tokens"],
            num_suffix_tokens=described["num_suffix_tokens"],
        )
        for name in SPLIT_NAMES
        if (folder / f"{name}.arrow").is_file()
    }
    return Prepared(
        labels=tuple(described["labels"]),
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        report=DataReport.from_json(json.loads((folder / "report.json").read_text(encoding="utf-8"))),
        fingerprint=key,
        pad_token_id=tokenizer.pad_token_id,
    )
