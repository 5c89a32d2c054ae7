"""What a bundle says of itself: the content of ``bundle.json``, and what the server tells at ``/info``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelyard.deployment.parity import ParityRecord
from modelyard.recipe.schema import DeploymentSection

FORMAT_VERSION = 1


class Record(BaseModel):
    """Common to all records: unknown keys are errors, values cannot change, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measured(Record):
    """A metric with its confidence interval, all as shares from 0 to 1."""

    value: float
    low: float
    high: float


class MetricsSummary(Record):
    """How the model did on the test examples. No metric stands here without its interval.

    num_examples: test examples that every number was computed on.
    confidence: level of all intervals, such as 0.95.
    metrics: by name (``accuracy``, ``f1`` …), in the order of the report.
    baselines: the same for each baseline, by its name.
    """

    num_examples: int = Field(ge=1)
    confidence: float = Field(gt=0.0, lt=1.0)
    metrics: dict[str, Measured]
    baselines: dict[str, dict[str, Measured]] = Field(default_factory=dict)


class Preprocessing(Record):
    """What happens to a text before the model reads it.

    remove: regular expression; what it matches is taken out first.
    max_length: longest input in tokens, special tokens included; what is longer is cut at its end.
    """

    remove: str | None
    max_length: int = Field(ge=1)


class ModelFacts(Record):
    """What the weights are; read from the model's own files."""

    architecture: str
    num_layers: int | None
    hidden_size: int | None
    num_parameters: int
    weights_bytes: int


class BundleInfo(Record):
    """The content of ``bundle.json``.

    labels: class names in the order of the logits.
    versions: of everything that made the model, by name.
    created: when the bundle was written (UTC, ISO 8601).
    examples: short texts to try the model with; may be empty.
    """

    format_version: int = FORMAT_VERSION
    name: str
    task: str
    labels: tuple[str, ...] = Field(min_length=2)
    preprocessing: Preprocessing
    limits: DeploymentSection
    model: ModelFacts
    metrics: MetricsSummary
    parity: ParityRecord
    versions: dict[str, str]
    created: str
    examples: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _labels_differ(self) -> BundleInfo:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"two labels have the same name: {list(self.labels)}")
        return self
