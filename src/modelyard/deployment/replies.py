"""What the server answers, as typed records; the description at ``/docs`` is made from them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from modelyard.deployment.predict import TextPrediction


class LabelProbability(BaseModel):
    """One label and its probability, from 0 to 1."""

    label: str
    probability: float


class PredictionReply(BaseModel):
    """The answer for one text."""

    label: str = Field(description="The most probable label.")
    probability: float = Field(description="Its probability, from 0 to 1.")
    probabilities: list[LabelProbability] = Field(description="All labels, the most probable first.")
    num_tokens: int = Field(description="Tokens that the model read.")
    truncated: bool = Field(description="Whether the end of the text was cut off.")
    num_tokens_cut: int = Field(description="Tokens that were cut off.")

    @classmethod
    def of(cls, prediction: TextPrediction) -> PredictionReply:
        """The reply for what the model said of one text."""
        ranked = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
        return cls(
            label=prediction.label,
            probability=prediction.probability,
            probabilities=[LabelProbability(label=label, probability=value) for label, value in ranked],
            num_tokens=prediction.num_tokens,
            truncated=prediction.num_tokens_cut > 0,
            num_tokens_cut=prediction.num_tokens_cut,
        )


class PredictReply(BaseModel):
    """The answers of one request, in the order of its texts."""

    predictions: list[PredictionReply]
    seconds: float = Field(description="Time from the request to the answer on the server.")


class Problem(BaseModel):
    """What went wrong, and what to do."""

    problem: str
    hint: str


class ErrorReply(BaseModel):
    """Every answer that is not 2xx."""

    error: Problem


class Health(BaseModel):
    """The state of the server."""

    status: str


def predict_description(max_texts: int, max_characters: int) -> dict[str, Any]:
    """The OpenAPI description of a request to ``/predict``."""
    text = {"type": "string", "minLength": 1, "maxLength": max_characters}
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": max_texts}
    variants = [
        {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}
        for name, schema in (("text", text), ("texts", texts))
    ]
    content = {"schema": {"oneOf": variants}, "example": {"text": "Write a text here."}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
