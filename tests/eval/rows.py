"""Samples written by hand."""

from jaxmath.eval.samples import Sample


def sample(id, number, outcome, *, pred="x", finish_reason="stop", gold="g", benchmark="b"):
    """A row with 10 + `number` tokens."""
    return Sample(
        benchmark=benchmark,
        id=id,
        sample=number,
        prompt="p",
        response="r",
        num_tokens=10 + number,
        finish_reason=finish_reason,
        outcome=outcome,
        rule="exact",
        pred=pred,
        gold=gold,
        logprob=-1.0,
    )


def run(*patterns):
    """One string per question: 1 right, 0 wrong."""
    return [
        sample(f"q{i}", j, "right" if mark == "1" else "wrong", pred=mark)
        for i, pattern in enumerate(patterns)
        for j, mark in enumerate(pattern)
    ]


def votes(*rows):
    """(answer, outcome) of each sample of one question."""
    return [sample("q0", j, outcome, pred=pred) for j, (pred, outcome) in enumerate(rows)]


def same_number(pairs):
    return [float(a) == float(b) for a, b in pairs]


def same_text(pairs):
    return [a == b for a, b in pairs]
