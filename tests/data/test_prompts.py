import pytest

from jaxmath.data import prompts
from jaxmath.data.prompts import Example
from jaxmath.data.records import Problem

GENERATE = (
    "Solve the following math problem efficiently and clearly. Think carefully and step by step "
    "about your response and reason before providing a final response. Conclude your response "
    "with: \n\nTherefore, the final answer is: $\\boxed{answer}$. I hope it is correct.\n\nWhere "
    "[answer] is just the final number or expression that solves the problem. If the question is "
    "a multiple choice question, [answer] should be the letter indicating your correct response "
    "(e.g. \\text{A} or \\text{B})."
)
PRIME_RL = (
    "\nWhen tackling complex reasoning tasks, you have access to the following actions. Use them "
    "as needed to progress through your thought process.\n\n[ASSESS]\n\n[ADVANCE]\n\n[VERIFY]\n\n"
    "[SIMPLIFY]\n\n[SYNTHESIZE]\n\n[PIVOT]\n\n[OUTPUT]\n\nYou should strictly follow the format "
    "below:\n\n[ACTION NAME]\n\n# Your action step 1\n\n# Your action step 2\n\n# Your action "
    "step 3\n\n...\n\nNext action: [NEXT ACTION NAME]\n\n"
)
SUFFIX = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
QUESTION = "What is $1+1$?"


def system_and_user(style):
    messages = prompts.prompt_messages(style, QUESTION)
    assert [m["role"] for m in messages] == ["system", "user"]
    return messages[0]["content"], messages[1]["content"]


def test_plain_is_the_question_alone():
    assert prompts.prompt_messages("plain", QUESTION) == [{"role": "user", "content": QUESTION}]


def test_synthesis_and_sft_prompts():
    assert system_and_user("intellect-synth") == (GENERATE, QUESTION)
    ends = "just the final number or expression that solves the problem."
    system, user = system_and_user("intellect-sft")
    assert user == QUESTION and system.endswith(ends)
    assert GENERATE.startswith(system) and "multiple choice" not in system


def test_prime_prompts():
    assert system_and_user("prime-rl") == (PRIME_RL, QUESTION + SUFFIX)
    system, user = system_and_user("prime-eval")
    assert user == QUESTION + SUFFIX
    assert "\n" not in system and system.startswith("\\nWhen tackling")
    assert system.endswith("[NEXT ACTION NAME]\\n")
    assert system.replace("\\n", "\n") + "\n" == PRIME_RL


def test_qwen_prompts(qwen_chatml):
    messages = prompts.prompt_messages("qwen25-math-cot", QUESTION)
    assert qwen_chatml.render(messages, True) == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within "
        f"\\boxed{{}}.<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert system_and_user("tir")[0] == (
        "Please integrate natural language reasoning with programs to solve the problem above, "
        "and put your final answer within \\boxed{}."
    )


@pytest.mark.parametrize("end", ["", SUFFIX, SUFFIX + "\n", SUFFIX * 2, SUFFIX.strip()])
def test_suffix_is_there_exactly_once(end):
    assert prompts.with_suffix(QUESTION + end) == QUESTION + SUFFIX
    assert prompts.without_suffix(QUESTION + end) == QUESTION


def test_prompt_tokens_end_where_the_response_begins(small):
    tokens = prompts.prompt_tokens(small, "plain", QUESTION)
    response = [{"role": "assistant", "content": "2"}]
    whole = small.encode_chat(prompts.prompt_messages("plain", QUESTION) + response)
    assert whole[: len(tokens)] == tokens and len(whole) == len(tokens) + 3


def test_long_prompts_are_dropped_with_a_reason_never_cut(small):
    problems = [Problem(f"p{n}", "1+" * n + "1", "0") for n in range(1, 30)]
    lengths = [len(prompts.prompt_tokens(small, "plain", p.problem)) for p in problems]
    kept, dropped = prompts.filter_prompts(small, "plain", problems, lengths[9])
    assert [p.problem.id for p in kept] == [p.id for p in problems[:10]]
    assert [len(p.tokens) for p in kept] == lengths[:10]
    assert [d.id for d in dropped] == [p.id for p in problems[10:]]
    assert dropped[0].reason == f"prompt has {lengths[10]} tokens, more than {lengths[9]}"


def test_unknown_style_names_the_known_ones():
    for check in (prompts.check_style, lambda style: prompts.prompt_messages(style, QUESTION)):
        with pytest.raises(ValueError, match="'prime-rI'.*'prime-rl'.*'question-answer'"):
            check("prime-rI")


# --- examples -----------------------------------------------------------------------------------

SHOWN = (Example("1+2?", "It is $\\boxed{3}$."), Example("2+2?", "It is $\\boxed{4}$."))
DEMOS = "1+2?\nIt is $\\boxed{3}$.\n\n2+2?\nIt is $\\boxed{4}$.\n\n"


def test_examples_stand_in_the_one_user_turn():
    system, user = prompts.prompt_messages("qwen25-math-cot", QUESTION, SHOWN)
    assert system == prompts.prompt_messages("qwen25-math-cot", QUESTION)[0]
    assert user == {"role": "user", "content": DEMOS + QUESTION}


def test_primes_instruction_stands_once_after_the_question():
    user = prompts.prompt_messages("prime-eval", QUESTION, SHOWN)[-1]["content"]
    assert user == DEMOS + QUESTION + SUFFIX


def test_a_base_model_continues_a_document():
    expected = (
        "Question: 1+2?\nAnswer: It is $\\boxed{3}$.\n\n"
        "Question: 2+2?\nAnswer: It is $\\boxed{4}$.\n\n"
        f"Question: {QUESTION}\nAnswer:"
    )
    assert prompts.TEXT_STYLES["question-answer"].text(QUESTION, SHOWN) == expected
    expected = (
        f"Problem:\n1+2?\n\nSolution:\nIt is $\\boxed{{3}}$.\n\nProblem:\n{QUESTION}\n\nSolution:\n"
    )
    assert prompts.TEXT_STYLES["problem-solution"].text(QUESTION, SHOWN[:1]) == expected


@pytest.mark.parametrize("style", list(prompts.TEXT_STYLES))
def test_a_text_prompt_ends_where_a_token_ends(style, qwen_chatml):
    """What the model reads is the beginning of what it would have read with the solution there."""
    text = prompts.prompt_text(qwen_chatml, style, QUESTION, SHOWN)
    tokens = prompts.prompt_tokens(qwen_chatml, style, QUESTION, SHOWN)
    assert qwen_chatml.decode(tokens) == text and "<|im_start|>" not in text
    space = " " if text.endswith(":") else ""
    whole = qwen_chatml.encode(f"{text}{space}We add.")
    assert whole[: len(tokens)] == tokens


@pytest.mark.parametrize("style", list(prompts.TEXT_STYLES))
def test_a_text_style_stops_where_the_next_question_begins(style):
    (stop,) = prompts.stops(style)
    assert stop in prompts.TEXT_STYLES[style].text(QUESTION, SHOWN)
    assert stop not in prompts.TEXT_STYLES[style].text(QUESTION)
    assert prompts.stops("plain") == ()


def test_a_text_style_has_no_messages():
    with pytest.raises(ValueError, match="'question-answer' is a plain text for base models"):
        prompts.prompt_messages("question-answer", QUESTION)


def test_a_prompt_as_text_is_the_rendered_chat(small):
    messages = prompts.prompt_messages("plain", QUESTION, SHOWN)
    assert prompts.prompt_text(small, "plain", QUESTION, SHOWN) == small.render(messages, True)


def test_examples_count_towards_the_length_of_a_prompt(small):
    problems = [Problem("p0", QUESTION, "2"), Problem("p1", QUESTION, "2")]
    show = lambda problem: SHOWN if problem.id == "p1" else ()  # noqa: E731
    short = len(prompts.prompt_tokens(small, "plain", QUESTION))
    kept, dropped = prompts.filter_prompts(small, "plain", problems, short + 1, show)
    assert [p.problem.id for p in kept] == ["p0"] and [d.id for d in dropped] == ["p1"]
    kept, _ = prompts.filter_prompts(small, "plain", problems, 1000, show)
    assert kept[1].tokens == tuple(prompts.prompt_tokens(small, "plain", QUESTION, SHOWN))
