"""`jaxmath verify` keeps every row, in order, and writes its output whole or not at all."""

import json

import pytest

from jaxmath.runs import audit, verify
from jaxmath.verify import pool

ONE_WORKER = pool.VerifyConfig(num_workers=1)
ROWS = [
    '{"id": 7, "gold": "1/2", "response": "so \\\\boxed{0.5}", "outcome": "stale"}',
    '{"gold": "1/2", "pred": "0.4", "tags": ["a"]}',
    "not json",
    '{"gold": "1"}',
    "",
    '{"response": "x"}',
    '{"gold": 1, "pred": "1"}',
    "[1, 2]",
    '{"gold": "", "pred": "1"}',
    '{"gold": "5", "response": "no idea"}',
    '{"gold": "(1,2)", "pred": "(1, 2)"}',
]


def test_every_row_comes_back_in_order_with_outcome_and_rule(tmp_path):
    source, sink = tmp_path / "in.jsonl", tmp_path / "deep" / "out.jsonl"
    source.write_bytes("\n".join(ROWS).encode() + b'\n\xff\xfe{"gold"')
    counts = verify.run(source, sink, ONE_WORKER)
    rows = [json.loads(line) for line in sink.read_text().splitlines()]
    expected = "right wrong error error error error error unparseable_gold no_answer right error"
    assert " ".join(row["outcome"] for row in rows) == expected
    assert {outcome: counts[outcome] for outcome in counts if counts[outcome]} == {
        "rows": 11, "right": 2, "wrong": 1, "no_answer": 1, "unparseable_gold": 1, "error": 6
    }  # fmt: skip
    assert rows[0] == {
        "id": 7,
        "gold": "1/2",
        "response": r"so \boxed{0.5}",
        "outcome": "right",
        "rule": "same value",
        "grader": "strict",
    }
    assert rows[1]["tags"] == ["a"]
    assert rows[2]["raw"] == "not json"
    assert rows[2]["rule"].startswith("line 3: not JSON")
    assert rows[3]["rule"] == "line 4: field 'response' or 'pred' is missing"
    assert rows[4]["rule"] == "line 6: field 'gold' is missing"
    assert rows[5]["rule"] == "line 7: field 'gold' must be a string, got int"
    assert rows[6]["rule"] == "line 8: expected a JSON object, got list"
    assert [path.name for path in sink.parent.iterdir()] == ["out.jsonl"]


def test_counts_alone_need_no_output(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(ROWS[:2]))
    config = pool.VerifyConfig(num_workers=1, grader="qwen")
    assert verify.run(source, config=config)["right"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_audit_counts_pairs_and_shows_where_they_differ(tmp_path):
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"gold": "7", "response": r"\boxed{7}"},
        {"gold": "0.5", "response": r"so \boxed{50}", "verdicts": "stale"},
        {"gold": "1/3", "pred": "0.33"},
        {"gold": "1/3", "pred": "2"},
        {"gold": ""},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = verify.audit(source, ["strict", "lenient", "qwen"], sink, ONE_WORKER, max_shown=1)
    assert found.summary() == json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert found.summary() == {
        "rows": 5,
        "disagreements": 2,
        "outcomes": {
            "strict": {"right": 1, "wrong": 3, "error": 1},
            "lenient": {"right": 2, "wrong": 2, "error": 1},
            "qwen": {"right": 2, "wrong": 2, "error": 1},
        },
        "pairs": [
            pair("strict lenient", both=1, second=1, neither=2, fault=1),
            pair("strict qwen", both=1, second=1, neither=2, fault=1),
            pair("lenient qwen", both=1, first=1, second=1, neither=1, fault=1),
        ],
    }
    kept = [json.loads(line) for line in sink.read_text().splitlines()]
    assert kept[1]["verdicts"]["qwen"] == {
        "outcome": "right",
        "rule": "box: number within 1e-4",
        "pred": "50",
    }
    assert kept[1]["verdicts"]["strict"]["outcome"] == "wrong"
    text = found.text()
    assert "| strict | qwen | 1 | 0 | 1 | 2 | 1 |" in text
    assert "2 of 5 rows are disputed, the first 1:" in text
    assert "line 2, gold '0.5'" in text and "line 3" not in text
    assert "  qwen     right     '50'  (box: number within 1e-4)" in text


def pair(graders, **counts):
    return {"graders": graders.split()} | dict.fromkeys(audit.PAIR, 0) | counts


@pytest.mark.parametrize("names", [["strict"], ["strict", "strict"], ["strict", "nope"]])
def test_an_audit_needs_two_graders_that_exist(tmp_path, names):
    with pytest.raises(ValueError, match="two or more different graders of strict, lenient"):
        verify.audit(tmp_path / "in.jsonl", names)


def test_an_interrupted_run_leaves_the_old_output_alone(tmp_path, monkeypatch):
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(ROWS[0] + "\n")
    sink.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "verdicts_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify.run(source, sink, ONE_WORKER)
    assert sink.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such file"):
        verify.run(tmp_path / "absent.jsonl", tmp_path / "out.jsonl")


def test_a_file_longer_than_a_chunk_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "CHUNK_ROWS", 7)
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"gold": str(n), "pred": str(n)}) + "\n" for n in range(30))
    )
    assert verify.run(source, sink, pool.VerifyConfig(num_workers=2))["right"] == 30
    assert [json.loads(line)["gold"] for line in sink.read_text().splitlines()] == [
        str(n) for n in range(30)
    ]
