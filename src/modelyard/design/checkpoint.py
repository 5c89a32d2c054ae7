"""A checkpoint folder in Hugging Face format: whether everything that is needed is there, whole and safe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modelyard.errors import InputError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
OTHER_WEIGHTS = (*PICKLED_WEIGHTS, "*.h5", "*.msgpack", "*.onnx", "*.gguf")
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("sentencepiece.bpe.model",),
)
_LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


def check_checkpoint(folder: Path) -> Path:
    """`folder` itself, when it holds a configuration, whole safetensors weights and a tokenizer.

    Raises InputError that names what is missing or broken.
    """
    read_config(folder)
    for weights in weight_files(folder):
        check_safetensors(weights)
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        raise InputError(
            f"{folder} has no tokenizer (tokenizer.json, vocab.txt, or vocab.json with merges.txt)",
            hint=f"copy the tokenizer's files from the checkpoint that it was made from into {folder}",
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises InputError when it is missing or no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no config.json, so it is not a checkpoint (there: {_listing(folder)})",
            hint="name the folder that holds config.json and model.safetensors: --set design.model=FOLDER",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as JSON: {error}", hint="take it from where the checkpoint was published"
        ) from error
    if not isinstance(config, dict):
        raise InputError(
            f"{path} holds {type(config).__name__}, expected a JSON object",
            hint="take it from where the checkpoint was published",
        )
    return config


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "nothing"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or all that its index names.

    Raises InputError when there are none, or one of them is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        try:
            index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
            names = sorted({str(name) for name in index["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{folder / WEIGHTS_INDEX} is no index of weights: {error!r}",
                hint="download the checkpoint again",
            ) from error
        # A name with a folder in it could lead out of the checkpoint.
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder} has {len(names) - len(missing)} of {len(names)} weight files, {missing[0]} is missing",
                hint="download the checkpoint again",
            )
        return [folder / name for name in names]
    raise _no_safetensors(folder)


def _no_safetensors(folder: Path) -> InputError:
    pickled = sorted({file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern)})
    if not pickled:
        return InputError(
            f"{folder} has no weights ({WEIGHTS}; there: {_listing(folder)})",
            hint="name the folder that holds config.json and model.safetensors: --set design.model=FOLDER",
        )
    return InputError(
        f"{folder} holds its weights in {pickled[0]}; only safetensors are loaded, because such a file can run code",
        hint=convert_command(str(folder), f"{folder.name}-safetensors"),
    )


def convert_command(source: str, target: str) -> str:
    """The command that rewrites a checkpoint with pickled weights as safetensors."""
    classes = "for c in (AutoModel, AutoTokenizer)"
    code = (
        "from transformers import AutoModel, AutoTokenizer; "
        f"[c.from_pretrained({source!r}).save_pretrained({target!r}) {classes}]"
    )
    return f'python -c "{code}"'


def check_safetensors(path: Path) -> None:
    """Whether the file's length is what its header says (https://huggingface.co/docs/safetensors, "Format").

    Raises InputError for a file that was cut off, is a Git LFS pointer or something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise InputError(
                f"{path} is a Git LFS pointer of {size} bytes, not the weights",
                hint=f"git -C {path.parent} lfs pull",
            )
        num_header_bytes = int.from_bytes(start[:8], "little")
        if size < 8 or num_header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            raise InputError(f"{path} is not a safetensors file ({size} bytes)", hint="download it again")
        file.seek(8)
        header_bytes = file.read(num_header_bytes)
    try:
        header = json.loads(header_bytes)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a safetensors file: {error!r}", hint="download it again") from error
    expected = 8 + num_header_bytes + max(ends, default=0)
    if size != expected:
        raise InputError(
            f"{path} has {size:,} bytes, its header speaks of {expected:,}: it was cut off or changed",
            hint="download it again",
        )
