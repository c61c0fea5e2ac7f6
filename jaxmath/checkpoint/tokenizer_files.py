"""The tokenizer files of a Hugging Face folder: what to carry along, and the ids that end texts."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from jaxmath.checkpoint.errors import CheckpointError

GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds a mapping."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a Hugging Face model folder has it") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON mapping; download it again")
    return value


def present(folder: str | os.PathLike) -> bool:
    """True if the folder has any file of a tokenizer."""
    return any((pathlib.Path(folder) / name).is_file() for name in TOKENIZER_FILES)


def copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies the tokenizer's files and chat template, and no others."""
    source, target = pathlib.Path(source), pathlib.Path(target)
    if not present(source):
        raise CheckpointError(f"{source}: has no tokenizer files; give a tokenizer or model folder")
    target.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, GENERATION):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def find_eos_ids(folder: str | os.PathLike) -> list[int]:
    """Every id that a model or tokenizer folder names as the end of a generation.

    In this order, without repeats: generation_config.json, config.json, the tokenizer's eos_token.
    """
    folder, ids = pathlib.Path(folder), []
    for name in (GENERATION, "config.json"):
        if (folder / name).exists():
            found = read_json(folder / name).get("eos_token_id")
            ids += found if isinstance(found, list) else [found]
    if (folder / "tokenizer_config.json").exists() and (folder / "tokenizer.json").exists():
        token = read_json(folder / "tokenizer_config.json").get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        added = read_json(folder / "tokenizer.json").get("added_tokens") or []
        ids += [entry["id"] for entry in added if entry["content"] == token]
    return list(dict.fromkeys(i for i in ids if isinstance(i, int)))
