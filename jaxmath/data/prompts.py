"""How a question is put to a model: prompt styles by name, with worked examples before it or none.

The texts of chat styles are data: they are the published prompts of INTELLECT-MATH, PRIME
(arXiv:2502.01456) and Qwen2.5-Math (arXiv:2409.12122), character for character. The SFT, RL and
evaluation prompts of INTELLECT-MATH all differ, as published. Examples stand in the one user turn,
`question\nsolution`, a blank line between them, as Qwen2.5-Math's evaluation lays them out.

A base model has no chat template: text styles ask it to continue a document of questions with
their solutions, and end a response where it begins the next question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
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


@dataclasses.dataclass(frozen=True)
class Example:
    """A question with a worked solution, shown before the question that is asked."""

    question: str
    solution: str


@dataclasses.dataclass(frozen=True)
class TextStyle:
    """A document for a base model: `question` and `solution` are written before the texts."""

    question: str
    solution: str
    stop: str  # what the model writes next once the solution is complete

    def text(self, question: str, examples: Sequence[Example] = ()) -> str:
        """The document up to where the model's solution begins."""
        shown = [f"{self._asked(e.question)}{e.solution}\n\n" for e in examples]
        # A token that ends in a space is not how " 12" is spelled: the space is the model's.
        return "".join(shown) + self._asked(question).rstrip(" ")

    def _asked(self, question: str) -> str:
        return f"{self.question}{question}{self.solution}"


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

TEXT_STYLES: dict[str, TextStyle] = {
    "question-answer": TextStyle("Question: ", "\nAnswer: ", stop="\nQuestion:"),
    "problem-solution": TextStyle("Problem:\n", "\n\nSolution:\n", stop="\nProblem:"),
}


def check_style(style: str) -> None:
    """Raises ValueError unless there is a chat or text style of this name."""
    if style not in PROMPT_STYLES and style not in TEXT_STYLES:
        known = [*PROMPT_STYLES, *TEXT_STYLES]
        raise ValueError(f"prompt style is {style!r}, expected one of {known}")


def stops(style: str) -> tuple[str, ...]:
    """Strings that end a response in this style."""
    return (TEXT_STYLES[style].stop,) if style in TEXT_STYLES else ()


def prompt_messages(style: str, question: str, examples: Sequence[Example] = ()) -> list[Message]:
    """The messages, system first if there is one, that put `question` in this chat style.

    Raises:
      ValueError: no such style, or a text style, which has no messages.
    """
    check_style(style)
    if style in TEXT_STYLES:
        raise ValueError(
            f"prompt style {style!r} is a plain text for base models; a chat needs one of "
            f"{list(PROMPT_STYLES)}"
        )
    shown = [f"{example.question}\n{example.solution}" for example in examples]
    return PROMPT_STYLES[style]("\n\n".join([*shown, question]))


def prompt_text(
    tokenizer: Tokenizer, style: str, question: str, examples: Sequence[Example] = ()
) -> str:
    """The prompt as people read it, chat template and generation prompt included."""
    if style in TEXT_STYLES:
        return TEXT_STYLES[style].text(question, examples)
    messages = prompt_messages(style, question, examples)
    return tokenizer.render(messages, add_generation_prompt=True)


def prompt_tokens(
    tokenizer: Tokenizer, style: str, question: str, examples: Sequence[Example] = ()
) -> list[int]:
    """Ids of the prompt, generation prompt included: what the model continues."""
    if style in TEXT_STYLES:
        return tokenizer.encode(TEXT_STYLES[style].text(question, examples))
    messages = prompt_messages(style, question, examples)
    return tokenizer.encode_chat(messages, add_generation_prompt=True)


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


def no_examples(problem: Problem) -> Sequence[Example]:
    """Asks at once."""
    return ()


def filter_prompts(
    tokenizer: Tokenizer,
    style: str,
    problems: Iterable[Problem],
    max_prompt_tokens: int,
    examples_for: Callable[[Problem], Sequence[Example]] = no_examples,
) -> tuple[list[Prompt], list[Dropped]]:
    """Prompts of at most `max_prompt_tokens` ids, generation prompt included, and the others.

    Order is kept. Nothing is cut: a prompt either fits or is dropped with its reason, as PRIME
    does (limit 1024).

    Args:
      examples_for: what is shown before a problem.
    """
    kept, dropped = [], []
    for problem in problems:
        tokens = prompt_tokens(tokenizer, style, problem.problem, examples_for(problem))
        if len(tokens) <= max_prompt_tokens:
            kept.append(Prompt(problem, tuple(tokens)))
        else:
            reason = f"prompt has {len(tokens)} tokens, more than {max_prompt_tokens}"
            dropped.append(Dropped(problem.id, reason))
    return kept, dropped
