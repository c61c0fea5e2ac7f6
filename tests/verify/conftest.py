"""The collected cases that every grader is judged on."""

import json

import pytest


@pytest.fixture(scope="session")
def grader_cases(shared):
    """(gold, response, expected) of the rows on which sensible graders agree; bare answers in a
    box."""
    rows = [json.loads(line) for line in (shared / "data/grader/cases.jsonl").open()]
    return [
        (
            r["gold"],
            r["pred"] if r["kind"] == "response" else rf"\boxed{{{r['pred']}}}",
            r["expected"],
        )
        for r in rows
        if not r["convention"]
    ]
