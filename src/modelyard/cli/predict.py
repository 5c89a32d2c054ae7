"""``modelyard predict RUN INPUT``: labels with all probabilities, for a text, a file of texts, or standard input."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What predicts, and what it is given."""
    parser.add_argument("folder", type=Path, metavar="RUN|BUNDLE", help="folder of an exported run, or a bundle")
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="a .txt file (one document), a CSV, TSV, JSONL or Parquet file, `-` (one text a line), or the text itself",
    )
    parser.add_argument(
        "--text", default="text", metavar="COLUMN", help="column of the text in a file (text if not given)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print one line a text: label, probability, text; with --json one JSON object a line."""
    from modelyard.workflow.use import blocks, input_texts, open_bundle

    _, predictor = open_bundle(arguments.folder)
    for block in blocks(input_texts(arguments.input, arguments.text, sys.stdin)):
        for text, prediction in zip(block, predictor.predict(block), strict=True):
            cut = prediction.num_tokens_cut
            if arguments.json:
                value = {
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "probabilities": prediction.probabilities,
                    "num_tokens": prediction.num_tokens,
                    "num_tokens_cut": cut,
                }
                print(json.dumps(value, ensure_ascii=False))
            else:
                excerpt = " ".join(text.split())
                excerpt = excerpt if len(excerpt) <= 60 else excerpt[:59] + "…"
                note = f"  ({cut:,} tokens cut)" if cut else ""
                print(f"{prediction.label}  {prediction.probability:.3f}  {excerpt}{note}")
    return 0
