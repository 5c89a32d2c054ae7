"""Is the exported model still the trained one? Its logits are compared on real test data.

Legend: B examples in a batch, T positions (tokens), C classes.

Every batch is answered as it came, and its shortest example once more alone and without padding: an export
that is right for one shape only (a traced branch, a mask that is ignored) differs there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from modelyard.engines.base import Batch
from modelyard.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelyard.engines.base import Predictor

# A guess: in float32 another batch shape sums in another order and moves a logit by about 1e-6; a wrong mask
# or a lost layer moves it by more than 1e-2.
DEFAULT_TOLERANCE = 1e-4


class ParityRecord(BaseModel):
    """What the comparison found; it is kept in the bundle.

    passed: every logit was finite and within `tolerance` (absolute) of the trained model's.
    reason: why not, in one sentence; empty when passed.
    max_abs_difference: largest difference of a logit, or None when nothing comparable came back.
    num_examples: examples compared; num_agreeing: those of them with the same best class.
    num_batches, batch_sizes: batches compared, and their different sizes B (1: examples alone).
    shortest_tokens, longest_tokens: T of the shortest and of the longest input, padding included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed: bool
    reason: str
    tolerance: float
    max_abs_difference: float | None
    num_examples: int
    num_agreeing: int
    num_batches: int
    batch_sizes: tuple[int, ...]
    shortest_tokens: int
    longest_tokens: int


def check_parity(
    reference: Iterable[tuple[Batch, NDArray[np.float32]]],
    predictor: Predictor,
    tolerance: float = DEFAULT_TOLERANCE,
) -> ParityRecord:
    """Compare `predictor`, the exported model loaded afresh, with the trained model's logits.

    reference: test batches, better of several lengths and sizes, each with the trained model's logits (B, C).
    """
    reasons: list[str] = []
    differences: list[float] = []
    batch_sizes: set[int] = set()
    lengths: set[int] = set()
    num_examples = num_agreeing = num_batches = 0
    for batch, expected in reference:
        num_batches += 1
        num_examples += batch.num_examples
        shortest, position = _shortest_alone(batch)
        for part, logits in ((batch, expected), (shortest, expected[position : position + 1])):
            size, length = part.arrays["input_ids"].shape
            batch_sizes.add(size)
            lengths.add(length)
            found = predictor.predict(part).logits
            if found.shape != logits.shape:
                reasons.append(f"the logits have shape {found.shape} instead of {logits.shape}")
            elif not np.isfinite(found).all():
                reasons.append(f"the logits of a batch of {size} x {length} tokens are not all finite numbers")
            else:
                differences.append(float(np.abs(found.astype(np.float64) - logits).max()))
                if part is batch:
                    num_agreeing += int((found.argmax(axis=1) == logits.argmax(axis=1)).sum())
    worst = max(differences, default=None)
    if num_examples == 0:
        reasons.append("there was no test example to compare")
    if worst is not None and not worst <= tolerance:  # a NaN of the reference fails too
        reasons.append(f"a logit differs by {worst:.3g}, more than the tolerance of {tolerance:.3g}")
    return ParityRecord(
        passed=not reasons,
        reason=reasons[0] if reasons else "",
        tolerance=tolerance,
        max_abs_difference=worst,
        num_examples=num_examples,
        num_agreeing=num_agreeing,
        num_batches=num_batches,
        batch_sizes=tuple(sorted(batch_sizes)),
        shortest_tokens=min(lengths, default=0),
        longest_tokens=max(lengths, default=0),
    )


def require_parity(record: ParityRecord) -> None:
    """Let only a verified model pass.

    Raises InputError when the exported model's answers are not the trained model's.
    """
    if not record.passed:
        raise InputError(
            "the exported model is not published, because its answers are not the trained model's: "
            f"{record.reason} ({record.num_agreeing} of {record.num_examples} examples get the same label)",
            hint="train the run again with `modelyard train RECIPE`; report it if that does not help",
        )


def _shortest_alone(batch: Batch) -> tuple[Batch, int]:
    """The batch's example with the fewest tokens, without its padding, and its position in the batch."""
    mask = batch.arrays["attention_mask"]
    position = int(mask.sum(axis=1).argmin())
    tokens = np.flatnonzero(mask[position])
    alone = {
        name: array[position : position + 1, tokens] if array.ndim == 2 else array[position : position + 1]
        for name, array in batch.arrays.items()
    }
    rows = slice(position, position + 1)
    return Batch(arrays=alone, weights=batch.weights[rows], rows=batch.rows[rows]), position
