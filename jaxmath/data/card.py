"""The data card: a README.md with the front matter of the Hugging Face hub.

It says what a set of records is, where it came from and what was left out, all from the run itself;
no date, host or path of its making, so equal runs have equal cards.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import yaml

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
LARGEST = "1M<n<10M"


@dataclasses.dataclass(frozen=True)
class CardConfig:
    """What only people know. title: headline of the card.

    license: the licence of the records, as the hub writes it ("apache-2.0"); null says "unknown".
    note: a paragraph put under the headline.
    """

    title: str = "Verified solutions"
    license: str | None = None
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What the run knows. Mappings become tables, in their order; texts are shown as they are."""

    num_records: int
    teacher: str
    source: str
    prompt: list[dict[str, str]]
    sft_prompt: list[dict[str, str]]
    sampling: Mapping[str, Any]
    verifier: str
    grading: Mapping[str, Any]
    filters: Mapping[str, Any]
    responses: Mapping[str, int]
    questions: Mapping[str, int]
    decontamination: Mapping[str, Any]
    benchmarks: Mapping[str, int]


def render(config: CardConfig, facts: CardFacts, data_files: str) -> str:
    """The card of records that lie at `data_files`, a path or glob beside it."""
    front = {
        "license": config.license or "unknown",
        "pretty_name": config.title,
        "task_categories": ["text-generation"],
        "tags": ["math", "synthetic"],
        "size_categories": [_size(facts.num_records)],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": data_files}]}
        ],
    }
    overlap = _table("setting", "value", facts.decontamination)
    if facts.benchmarks:
        overlap += "\n\n" + _table("benchmark", "questions", facts.benchmarks)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {config.title}",
        *([config.note] if config.note else []),
        f"{facts.num_records:,} conversations: questions of {facts.source}, answered by "
        f"{facts.teacher}. Fields: `id`, `messages` (role and content), `ground_truth`.",
        "## How the teacher was asked",
        _fenced(_chat(facts.prompt)),
        _table("sampling", "value", facts.sampling),
        "## How the records put the question",
        _fenced(_chat(facts.sft_prompt)),
        "## How responses were graded",
        facts.verifier,
        _table("setting", "value", facts.grading),
        "## Filters",
        _table("filter", "value", facts.filters),
        "## What became of the responses",
        _table("fate", "responses", facts.responses),
        "## What became of the questions",
        _table("fate", "questions", facts.questions),
        "## Overlap with benchmarks",
        overlap,
        f"## Licence\n\n{config.license or 'Unknown: none was stated.'}",
    ]
    return "\n\n".join(parts) + "\n"


def _size(count: int) -> str:
    return next((name for limit, name in SIZES if count < limit), LARGEST)


def _chat(messages: list[dict[str, str]]) -> str:
    return "\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _table(left: str, right: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
