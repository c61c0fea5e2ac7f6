"""How a question is put to a model: prompt styles by name.

The texts are data: they are the published prompts of INTELLECT-MATH, PRIME (arXiv:2502.01456) and
Qwen2.5-Math (arXiv:2409.12122), character for character. The SFT, RL and evaluation prompts of
INTELLECT-MATH all differ, as published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from jaxmath.data.tokenizer import Message, Tokenizer

if TYPE_CHECKING:  # records asks questions in these styles, so it imports this file
    from jaxmath.data.records import Problem

SYNTH_SYSTEM = (
    "Solve the following math problem efficiently and clearly. Think carefully and step by step"
    " about your response and reason before providing a final response. Conclude your response"
    " with: \n\nTherefore, the final answer is: $\\boxed{answer}$. I hope it is correct.\n\n"
    "Where [answer] is just the final number or expression that solves the problem."
    " If the question is a multiple choice question, [answer] should be the letter indicating"
    " your correct response (e.g. \\text{A} or \\text{B})."
)

# The generation prompt without its multiple-choice sentence.
SFT_SYSTEM = SYNTH_SYSTEM[: SYNTH_SYSTEM.index(" If the question is a multiple choice")]

PRIME_RL_SYSTEM = (
    "\nWhen tackling complex reasoning tasks, you have access to the following actions."
    " Use them as needed to progress through your thought process.\n\n"
    "[ASSESS]\n\n[ADVANCE]\n\n[VERIFY]\n\n[SIMPLIFY]\n\n[SYNTHESIZE]\n\n[PIVOT]\n\n[OUTPUT]\n\n"
    "You should strictly follow the format below:\n\n[ACTION NAME]\n\n"
    "# Your action step 1\n\n# Your action step 2\n\n# Your action step 3\n\n...\n\n"
    "Next action: [NEXT ACTION NAME]\n\n"
)

# PRIME's evaluation reads the prompt from a file in which every newline is written as a backslash
# and an n, and which ends after one of them: the model sees the pairs, not newlines.
PRIME_EVAL_SYSTEM = PRIME_RL_SYSTEM.removesuffix("\n").replace("\n", "\\n")

QWEN_COT_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_TIR_SYSTEM = (
    "Please integrate natural language reasoning with programs to solve the problem above,"
    " and put your final answer within \\boxed{}."
)

PRIME_SUFFIX = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"


def with_suffix(question: str) -> str:
    """The question ending in PRIME's instruction exactly once."""
    return without_suffix(question) + PRIME_SUFFIX


def without_suffix(question: str) -> str:
    """The question without PRIME's instruction, however often and with whatever space it ends."""
    wanted = PRIME_SUFFIX.strip()
    stripped = question
    while stripped.rstrip().endswith(wanted):
        stripped = stripped.rstrip().removesuffix(wanted).rstrip()
    return stripped


def _chat(system: str | None, user: str) -> list[Message]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": user}]


PROMPT_STYLES: dict[str, Callable[[str], list[Message]]] = {
    "plain": lambda question: _chat(None, question),
    "qwen25-math-cot": lambda question: _chat(QWEN_COT_SYSTEM, question),
    "tir": lambda question: _chat(QWEN_TIR_SYSTEM, question),
    "intellect-synth": lambda question: _chat(SYNTH_SYSTEM, question),
    "intellect-sft": lambda question: _chat(SFT_SYSTEM, question),
    "prime-rl": lambda question: _chat(PRIME_RL_SYSTEM, with_suffix(question)),
    "prime-eval": lambda question: _chat(PRIME_EVAL_SYSTEM, with_suffix(question)),
}


def prompt_messages(style: str, question: str) -> list[Message]:
    """The messages, system first if there is one, that put `question` in this style.

    Raises:
      ValueError: no such style.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"prompt style is {style!r}, expected one of {list(PROMPT_STYLES)}")
    return PROMPT_STYLES[style](question)


def prompt_tokens(tokenizer: Tokenizer, style: str, question: str) -> list[int]:
    """Ids of the prompt, generation prompt included: what the model continues."""
    return tokenizer.encode_chat(prompt_messages(style, question), add_generation_prompt=True)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A problem and the ids that ask it."""

    problem: Problem
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A problem that is not asked, and why."""

    id: str
    reason: str


def filter_prompts(
    tokenizer: Tokenizer, style: str, problems: Iterable[Problem], max_prompt_tokens: int
) -> tuple[list[Prompt], list[Dropped]]:
    """Prompts of at most `max_prompt_tokens` ids, generation prompt included, and the others.

    Order is kept. Nothing is cut: a prompt either fits or is dropped with its reason, as PRIME
    does (limit 1024).
    """
    kept, dropped = [], []
    for problem in problems:
        tokens = prompt_tokens(tokenizer, style, problem.problem)
        if len(tokens) <= max_prompt_tokens:
            kept.append(Prompt(problem, tuple(tokens)))
        else:
            reason = f"prompt has {len(tokens)} tokens, more than {max_prompt_tokens}"
            dropped.append(Dropped(problem.id, reason))
    return kept, dropped
