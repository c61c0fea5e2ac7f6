"""Rows of data files to problems and conversations.

JSONL files, Parquet files, folders or globs of those, and `datasets` hub ids. The schema is found
row by row: `messages`; `prompt` and `response`; `problem` (or `question`) with `solution` and
`answer` (or `ground_truth`); and the Parquet rows of PRIME (`data_source`, `prompt`, `ability`,
`reward_model`, `extra_info`). A row that fits none is rejected with its file, line and reason; too
large a share of those stops the read. Every field is checked, nothing is filled in or coerced
except a numeric answer, which becomes its text, and the answer of a worked solution that gives none
beside it: the content of its last box, as in NuminaMath.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxmath.data import durable, prompts, sources
from jaxmath.data.tokenizer import ROLES, Message

PROBLEM_FIELDS = ("problem", "question", "prompt")
ANSWER_FIELDS = ("answer", "ground_truth", "final_answer")
SOLUTION_FIELDS = ("solution", "response")
ID_FIELDS = ("id", "unique_id", "problem_id")
NO_ANSWER_MARKS = ("proof", "notfound")  # NuminaMath-1.5's answer to a question that has none
GSM8K_MARK = "\n#### "  # in GSM8K's own rows the answer field is "solution\n#### answer"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its reference answer; `solution` is a worked solution, or None."""

    id: str
    problem: str
    answer: str
    solution: str | None = None
    source: str = ""
    extra: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages of role and content, the last of interest by the assistant."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    extra: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where rows come from.

    path: a .jsonl or .parquet file, a folder or glob of them, or a hub id such as "openai/gsm8k".
    split: the split of a hub data set; in a folder whose files are named by split, which of them.
    name: the configuration of a hub data set ("main" for openai/gsm8k), or None.
    limit: at most this many rows, the first good ones; None for all.
    max_reject_fraction: a larger share of malformed rows than this stops the read.
    """

    path: str
    split: str = "train"
    name: str | None = None
    limit: int | None = None
    max_reject_fraction: float = 0.01

    def __post_init__(self):
        if not self.path:
            raise ValueError("path is empty, expected a file, a folder, a glob or a hub id")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}; use null for all rows")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(
                f"max_reject_fraction must be in [0, 1], got {self.max_reject_fraction}"
            )


class RowError(ValueError):
    """Why a row is no record."""


class Unanswered(RowError):
    """A row in order, whose solution ends in no answer: mostly a proof."""


class Questions(NamedTuple):
    """problems: with neither solution nor extra fields. num_unanswered: rows left out because their
    solution gives no final answer."""

    problems: list[Problem]
    num_unanswered: int


def read_problems(cfg: DataConfig, reject_file: str | pathlib.Path | None = None) -> list[Problem]:
    """All problems of `cfg`, in file order.

    Args:
      reject_file: JSONL of the malformed rows {file, line, reason}, written anew.

    Raises:
      ValueError: nothing to read at `cfg.path`, no good row in it, or too many bad ones.
    """
    return _read(cfg, _problem, reject_file)


def read_answered(cfg: DataConfig, reject_file: str | pathlib.Path | None = None) -> Questions:
    """The problems of `cfg` whose solutions end in an answer, as little of them as can be graded.

    Rows without an answer are listed among the rejects, but are not malformed and stop nothing.

    Raises:
      ValueError: as `read_problems`.
    """

    def slim(row: dict, where: sources.Where) -> Problem:
        return dataclasses.replace(_problem(row, where), solution=None, extra={})

    unanswered: list[sources.Where] = []
    problems = _read(cfg, slim, reject_file, unanswered)
    return Questions(problems, len(unanswered))


def read_questions(cfg: DataConfig) -> list[tuple[str, str]]:
    """(id, question) of every row; answers are neither needed nor read.

    Raises:
      ValueError: as `read_problems`.
    """

    def question(row: dict, where: sources.Where) -> Problem:
        if "reward_model" in row:
            text = _asked(row)
        else:
            _, text = _text(row, PROBLEM_FIELDS)
        return Problem(_id(row, where), text, "")

    return [(found.id, found.problem) for found in _read(cfg, question, None)]


def read_conversations(
    cfg: DataConfig,
    prompt_style: str = "plain",
    reject_file: str | pathlib.Path | None = None,
) -> list[Conversation]:
    """All conversations of `cfg`, in file order.

    Rows with messages are taken as they are. Of a row with a question and a solution (or a
    response), the question is put in `prompt_style` and the solution is the assistant's text.

    Raises:
      ValueError: as `read_problems`, or no such style.
    """
    prompts.prompt_messages(prompt_style, "")  # an unknown style is the caller's fault, not a row's
    return _read(cfg, lambda row, where: _conversation(row, where, prompt_style), reject_file)


def to_row(record: Problem | Conversation) -> dict:
    """The record as one flat JSON object, which the reader of its kind reads back."""
    row = {k: v for k, v in dataclasses.asdict(record).items() if k != "extra" and v is not None}
    return {**row, **record.extra}


def _read(cfg: DataConfig, parse: Callable, reject_file, unanswered: list | None = None) -> list:
    """Rows in order; `unanswered`, if given, receives the places of those that may be so."""
    records, rejects, seen, num_rows = [], [], {}, 0
    for where, row in sources.rows(cfg.path, cfg.split, cfg.name):
        num_rows += 1
        try:
            if isinstance(row, sources.BadRow):
                raise RowError(row.reason)
            record = parse(row, where)
            if record.id in seen:
                raise RowError(f"id {record.id!r} was already at {seen[record.id]}")
        except RowError as error:
            rejects.append({"file": where.file, "line": where.line, "reason": str(error)})
            if unanswered is not None and isinstance(error, Unanswered):
                unanswered.append(where)
            continue
        seen[record.id] = where
        records.append(record)
        if len(records) == cfg.limit:
            break
    if reject_file is not None:
        lines = [json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects]
        durable.replace(pathlib.Path(reject_file), "".join(lines).encode())
    num_malformed = len(rejects) - len(unanswered or ())
    _check_rejects(cfg, records, rejects, num_malformed, num_rows, reject_file)
    return records


def _check_rejects(
    cfg: DataConfig, records, rejects, num_malformed: int, num_rows: int, reject_file
) -> None:
    if not records or num_malformed > cfg.max_reject_fraction * num_rows:
        first = "; ".join(f"{r['file']}:{r['line']}: {r['reason']}" for r in rejects[:3])
        listed = f"; all are in {reject_file}" if reject_file is not None else ""
        found = (
            f"{len(rejects)} of {num_rows} rows are malformed" if num_rows else "there is no row"
        )
        raise ValueError(
            f"{cfg.path}: {found}, at most a share of {cfg.max_reject_fraction} may be and at "
            f"least one row must be good. First: {first or 'none'}{listed}. "
            "Mend the rows, or raise max_reject_fraction"
        )


def _problem(row: dict, where: sources.Where) -> Problem:
    if "reward_model" in row:
        return _prime_problem(row, where)
    used, problem = _text(row, PROBLEM_FIELDS)
    solution_field, solution = _optional_text(row, SOLUTION_FIELDS)
    answer_field = _present(row, ANSWER_FIELDS)
    if answer_field is None and solution is None:
        raise RowError(f"no answer; expected one of the fields {ANSWER_FIELDS}")
    if answer_field is None or (solution is not None and _is_no_answer(row[answer_field])):
        answer, used_answers = last_box(solution), ANSWER_FIELDS
        if not answer:
            raise Unanswered("no answer, neither in a field nor in a last box of the solution")
    else:
        answer, used_answers = _answer_text(row[answer_field], answer_field), (answer_field,)
    if solution is None and GSM8K_MARK in answer:
        solution, _, answer = (part.strip() for part in answer.rpartition(GSM8K_MARK))
    extra = _rest(row, used, *used_answers, solution_field, "source", *ID_FIELDS)
    return Problem(_id(row, where), problem, answer, solution, _source(row), extra)


def _prime_problem(row: dict, where: sources.Where) -> Problem:
    """PRIME's Parquet row. The question is the user's text less the instruction of the style."""
    if row.get("ability", "math") != "math":
        raise RowError(f"ability is {row['ability']!r}; only 'math' has answers that can be graded")
    rule = row["reward_model"]
    if not isinstance(rule, dict):
        raise RowError("reward_model is no object; expected {style, ground_truth}")
    answer = _answer_text(rule.get("ground_truth"), "reward_model.ground_truth")
    question = _asked(row)
    source = row.get("data_source", "")
    if not isinstance(source, str):
        raise RowError("data_source must be a string")
    used = ("reward_model", "prompt", "data_source", *ID_FIELDS)
    return Problem(_id(row, where), question, answer, None, source, _rest(row, *used))


def _asked(row: dict) -> str:
    messages = _messages(row.get("prompt"), "prompt")
    if messages[-1]["role"] != "user":
        raise RowError("prompt must end with a user message")
    return prompts.without_suffix(messages[-1]["content"])


def _is_no_answer(value) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("", *NO_ANSWER_MARKS)


BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{…}` or `\\fbox{…}` of a text; None if it never closes."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opening = BOX.match(text, start) if start >= 0 else None
    if opening is None:
        return None
    depth = 1
    for brace in BRACE.finditer(text, opening.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[opening.end() : brace.start()].strip()
    return None


def _conversation(row: dict, where: sources.Where, prompt_style: str) -> Conversation:
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        extra = _rest(row, "messages", "source", *ID_FIELDS)
    else:
        solution_field, response = _optional_text(row, SOLUTION_FIELDS)
        if response is None and isinstance(row.get("answer"), str) and GSM8K_MARK in row["answer"]:
            solution_field, response = "answer", row["answer"].rpartition(GSM8K_MARK)[0].strip()
        if response is None:
            raise RowError(f"no messages and nothing to answer with; expected {SOLUTION_FIELDS}")
        if isinstance(row.get("prompt"), list):
            used, asked = "prompt", _messages(row["prompt"], "prompt")
        else:
            used, question = _text(row, PROBLEM_FIELDS)
            asked = tuple(prompts.prompt_messages(prompt_style, question))
        messages = (*asked, {"role": "assistant", "content": response})
        extra = _rest(row, used, solution_field, "source", *ID_FIELDS)
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError("no message is by the assistant, so there is nothing to learn")
    return Conversation(_id(row, where), tuple(messages), _source(row), extra)


def _messages(value, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{field} must be a list of messages that is not empty")
    for n, message in enumerate(value):
        if not isinstance(message, dict):
            raise RowError(f"{field}[{n}] must be an object of role and content")
        role = message.get("role")
        if role not in ROLES:
            raise RowError(f"{field}[{n}].role is {role!r}, expected one of {ROLES}")
        if role == "system" and n > 0:
            raise RowError(f"{field}[{n}].role is 'system', which only the first message may be")
        _check_text(message.get("content"), f"{field}[{n}].content")
    if value[0]["role"] == "assistant":
        raise RowError(f"{field} begins with the assistant; expected system or user")
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


def _check_text(value, field: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{field} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise RowError(f"{field} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{field} holds half of a surrogate pair") from error
    return value


def _answer_text(value, field: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value:  # OlympiadBench: several values make one answer
        return ", ".join(_check_text(item, field) for item in value)
    return _check_text(value, field)


def _present(row: dict, names: Iterable[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _text(row: dict, names: tuple[str, ...]) -> tuple[str, str]:
    name = _present(row, names)
    if name is None:
        raise RowError(f"no question; expected one of the fields {names}")
    return name, _check_text(row[name], name)


def _optional_text(row: dict, names: tuple[str, ...]) -> tuple[str | None, str | None]:
    name = _present(row, names)
    return (None, None) if name is None else (name, _check_text(row[name], name))


def _id(row: dict, where: sources.Where) -> str:
    name = _present(row, ID_FIELDS)
    if name is None:
        return f"{where.stem}:{where.line}"
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RowError(f"{name} must be a string or an integer, got {type(value).__name__}")
    return _check_text(str(value), name)


def _source(row: dict) -> str:
    source = row.get("source")
    if source is None:
        return ""
    return _check_text(source, "source")


def _rest(row: dict, *used: str | None) -> dict:
    return {name: value for name, value in row.items() if name not in used}
