import json

import pytest

from jaxmath.data import prompts, records, sources
from jaxmath.data.records import Conversation, DataConfig, Problem

ASK = {"role": "user", "content": "What is 1+1?"}
SAY = {"role": "assistant", "content": "\\boxed{2}"}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(path, rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def problems(path, **settings):
    return records.read_problems(DataConfig(str(path), **settings))


PRIME_ROW = {
    "data_source": "numina_olympiads",
    "prompt": [SYSTEM, {"role": "user", "content": prompts.with_suffix("What is 1+1?")}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "dummy", "index": 0},
}

PROBLEM_SCHEMAS = {
    "problem_solution_answer": (
        {"id": "a", "problem": "1+1?", "solution": "2", "answer": "2", "source": "s", "level": 3},
        Problem("a", "1+1?", "2", "2", "s", {"level": 3}),
    ),
    "question_ground_truth": (
        {"question": "1+1?", "ground_truth": "2"},
        Problem("f:1", "1+1?", "2"),
    ),
    "prompt_response": (
        {"problem_id": 7, "prompt": "1+1?", "response": "2", "ground_truth": 2, "correct": True},
        Problem("7", "1+1?", "2", "2", "", {"correct": True}),
    ),
    "several_final_answers": (
        {"id": 0, "question": "x^2=1?", "final_answer": ["1", "-1"]},
        Problem("0", "x^2=1?", "1, -1"),
    ),
    "gsm8k": (
        {"question": "1+1?", "answer": "Add.\n#### 2"},
        Problem("f:1", "1+1?", "2", "Add."),
    ),
    "prime": (
        PRIME_ROW,
        Problem(
            "f:1",
            "What is 1+1?",
            "2",
            None,
            "numina_olympiads",
            {"ability": "math", "extra_info": {"split": "dummy", "index": 0}},
        ),
    ),
}


@pytest.mark.parametrize("schema", PROBLEM_SCHEMAS)
def test_problem_schemas_are_found(schema, tmp_path):
    row, expected = PROBLEM_SCHEMAS[schema]
    assert problems(write(tmp_path / "f.jsonl", [row])) == [expected]


CONVERSATION_SCHEMAS = {
    "messages": (
        {"id": "m", "messages": [SYSTEM, ASK, SAY], "ground_truth": "2"},
        Conversation("m", (SYSTEM, ASK, SAY), "", {"ground_truth": "2"}),
    ),
    "prompt_response": (
        {"prompt": "What is 1+1?", "response": "\\boxed{2}"},
        Conversation("f:1", (ASK, SAY)),
    ),
    "prompt_messages_response": (
        {"prompt": [SYSTEM, ASK], "response": "\\boxed{2}"},
        Conversation("f:1", (SYSTEM, ASK, SAY)),
    ),
    "problem_solution": (
        {"problem": "What is 1+1?", "solution": "\\boxed{2}", "answer": "2", "source": "s"},
        Conversation("f:1", (ASK, SAY), "s", {"answer": "2"}),
    ),
    "gsm8k": (
        {"question": "What is 1+1?", "answer": "\\boxed{2}\n#### 2"},
        Conversation("f:1", (ASK, SAY)),
    ),
}


@pytest.mark.parametrize("schema", CONVERSATION_SCHEMAS)
def test_conversation_schemas_are_found(schema, tmp_path):
    row, expected = CONVERSATION_SCHEMAS[schema]
    path = write(tmp_path / "f.jsonl", [row])
    assert records.read_conversations(DataConfig(path)) == [expected]


def test_a_question_is_put_in_the_style_asked_for(tmp_path):
    path = write(tmp_path / "f.jsonl", [{"problem": "1+1?", "solution": "2", "answer": "2"}])
    (conversation,) = records.read_conversations(DataConfig(path), "intellect-sft")
    expected = prompts.prompt_messages("intellect-sft", "1+1?")
    assert list(conversation.messages) == [*expected, {"role": "assistant", "content": "2"}]
    with pytest.raises(ValueError, match="prompt style is 'nope'"):
        records.read_conversations(DataConfig(path), "nope")


@pytest.mark.parametrize("record", ["problem", "conversation"])
def test_a_written_row_reads_back_as_the_same_record(record, tmp_path):
    if record == "problem":
        one = Problem("a", "1+1?", "2", "2", "s", {"level": 1})
        path = write(tmp_path / "f.jsonl", [records.to_row(one)])
        assert records.read_problems(DataConfig(path)) == [one]
    else:
        one = Conversation("a", (ASK, SAY), "s", {"ground_truth": "2"})
        path = write(tmp_path / "f.jsonl", [records.to_row(one)])
        assert records.read_conversations(DataConfig(path)) == [one]


def test_parquet_reads_as_jsonl_does(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [dict(PRIME_ROW, extra_info={"split": "dummy", "index": n}) for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    found = problems(tmp_path / "f.parquet")
    assert found == problems(write(tmp_path / "f.jsonl", rows))
    assert [p.id for p in found] == ["f:1", "f:2", "f:3"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="bad.parquet: not a readable Parquet file"):
        problems(tmp_path / "bad.parquet")


def test_folder_glob_and_split_choose_files(tmp_path):
    for name in ("train-0", "train-1", "test"):
        write(tmp_path / f"{name}.jsonl", [{"problem": name, "answer": "1"}])
    texts = [p.problem for p in problems(tmp_path)]
    assert texts == ["train-0", "train-1"]
    assert [p.problem for p in problems(tmp_path, split="test")] == ["test"]
    assert [p.id for p in problems(tmp_path / "*1.jsonl")] == ["train-1:1"]
    with pytest.raises(ValueError, match="no file of split 'validation'"):
        problems(tmp_path, split="validation")
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("b", "a"):
        write(shards / f"{name}.jsonl", [{"problem": name, "answer": "1"}])
    assert [p.problem for p in problems(shards)] == ["a", "b"]


def test_limit_takes_the_first_rows(tmp_path):
    path = write(tmp_path / "f.jsonl", [{"problem": str(n), "answer": "1"} for n in range(9)])
    assert [p.problem for p in problems(path, limit=3)] == ["0", "1", "2"]


GOOD = {"problem": "1+1?", "answer": "2"}
BAD_ROWS = {
    "garbage": (b"{not json", "not JSON"),
    "latin-1": ('{"problem": "é", "answer": "1"}'.encode("latin-1"), "not UTF-8"),
    "array": (b"[1, 2]", "a JSON list, expected an object"),
    "nan": (b'{"problem": "a", "answer": NaN}', "NaN is not JSON"),
    "deep": (b"[" * 200_000, "not JSON"),
    "no problem": ({"answer": "1"}, "no question"),
    "no answer": ({"problem": "a"}, "no answer"),
    "null answer": ({"problem": "a", "answer": None}, "no answer"),
    "empty problem": ({"problem": "  ", "answer": "1"}, "problem is empty"),
    "problem type": ({"problem": 5, "answer": "1"}, "problem must be a string, got int"),
    "answer type": ({"problem": "a", "answer": True}, "answer must be a string, got bool"),
    "id type": ({"id": 1.5, "problem": "a", "answer": "1"}, "id must be a string or an integer"),
    "surrogate": (b'{"problem": "\\ud800", "answer": "1"}', "half of a surrogate pair"),
    "code": (dict(PRIME_ROW, ability="code"), "ability is 'code'"),
    "no rule": (dict(PRIME_ROW, reward_model="rule"), "reward_model is no object"),
    "prime prompt": (dict(PRIME_ROW, prompt="hi"), "prompt must be a list of messages"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_malformed_row_is_reported_with_file_line_and_reason(kind, tmp_path):
    bad, reason = BAD_ROWS[kind]
    path = write(tmp_path / "f.jsonl", [GOOD, bad, GOOD])
    cfg = DataConfig(path, max_reject_fraction=0.5)
    found = records.read_problems(cfg, tmp_path / "rejects.jsonl")
    assert [p.id for p in found] == ["f:1", "f:3"]
    (reject,) = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert (reject["file"], reject["line"]) == (path, 2) and reason in reject["reason"]


BAD_CHATS = {
    "empty": ([], "messages must be a list"),
    "string": ("hi", "messages must be a list"),
    "role": ([{"role": "robot", "content": "a"}, SAY], r"messages\[0\].role is 'robot'"),
    "no content": ([{"role": "user"}, SAY], r"messages\[0\].content must be a string"),
    "late system": ([ASK, SYSTEM, SAY], "only the first message may be"),
    "begins with assistant": ([SAY, ASK], "begins with the assistant"),
    "no assistant": ([ASK], "no message is by the assistant"),
}


@pytest.mark.parametrize("kind", BAD_CHATS)
def test_a_malformed_chat_is_refused(kind, tmp_path):
    messages, reason = BAD_CHATS[kind]
    path = write(tmp_path / "f.jsonl", [{"messages": messages}])
    with pytest.raises(ValueError, match=f"f.jsonl:1: .*{reason}"):
        records.read_conversations(DataConfig(path))


def test_a_repeated_id_names_the_first_place(tmp_path):
    rows = [dict(GOOD, id="same"), dict(GOOD, id="same")]
    path = write(tmp_path / "f.jsonl", rows)
    with pytest.raises(ValueError, match=r"f.jsonl:2: id 'same' was already at .*f.jsonl:1"):
        problems(path)


def test_too_many_rejects_stop_the_read_and_say_where(tmp_path):
    path = write(tmp_path / "f.jsonl", [GOOD] * 8 + [b"{", b"{"])
    assert len(problems(path, max_reject_fraction=0.2)) == 8
    with pytest.raises(ValueError) as error:
        records.read_problems(DataConfig(path, max_reject_fraction=0.19), tmp_path / "r.jsonl")
    text = str(error.value)
    assert "2 of 10 rows are malformed" in text and "f.jsonl:9: not JSON" in text
    assert str(tmp_path / "r.jsonl") in text
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2


def test_nothing_to_read_is_an_error(tmp_path):
    empty = write(tmp_path / "empty.jsonl", [b"", b"  "])
    with pytest.raises(ValueError, match="there is no row"):
        problems(empty)
    with pytest.raises(ValueError, match="no file there ends in"):
        problems(tmp_path / "*.parquet")
    with pytest.raises(ValueError, match="no such file or folder"):
        problems(tmp_path / "missing.jsonl")
    (tmp_path / "notes.txt").write_text("hi")
    with pytest.raises(ValueError, match="ends in '.txt'"):
        problems(tmp_path / "notes.txt")


def test_byte_order_mark_line_ends_and_u2028_are_no_trouble(tmp_path):
    first = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r"
    second = '{"problem": "a\u2028b", "answer": "1"}'.encode()
    found = problems(write(tmp_path / "f.jsonl", [first, b"", second]))
    assert [(p.id, p.problem) for p in found] == [("f:1", "1+1?"), ("f:3", "a\u2028b")]


def test_a_line_too_long_is_one_reject_and_the_next_line_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 64)
    path = write(tmp_path / "f.jsonl", [GOOD, {"problem": "a" * 500, "answer": "1"}, GOOD])
    cfg = DataConfig(path, max_reject_fraction=0.5)
    assert [p.id for p in records.read_problems(cfg, tmp_path / "r.jsonl")] == ["f:1", "f:3"]
    assert "line is over 64 bytes" in (tmp_path / "r.jsonl").read_text()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_reject_fraction must be in"):
        DataConfig("x", max_reject_fraction=2)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        DataConfig("x", limit=0)


def test_hub_ids_are_read_with_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return [GOOD, dict(GOOD, id="x")]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = problems("someone/some-set", name="main", split="test")
    assert asked == [("someone/some-set", "main", "test")]
    assert [p.id for p in found] == ["test:1", "x"]

    def fails(path, name, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(ValueError, match="no such file or folder, and the hub gave no split"):
        problems("someone/some-set")


@pytest.mark.parametrize("name", ["train/math_train", "eval/math500", "eval/olympiadbench"])
def test_real_files_read_without_a_reject(name, shared):
    path = shared / f"data/{name}.jsonl"
    found = problems(path, max_reject_fraction=0)
    assert len(found) == sum(1 for _ in path.open("rb"))
    assert found[0].extra["level"] if name != "eval/olympiadbench" else found[0].answer


# --- NuminaMath: the answer stands in the last box of the solution --------------------------------


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"solution": "So $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        ({"solution": "First $\\boxed{1}$, then $\\fbox{ 2 }$."}, "2"),
        ({"solution": "A set: $\\boxed{\\{1, 2\\}}$"}, "\\{1, 2\\}"),
        ({"solution": "$\\boxed{3}$", "answer": "four"}, "four"),
        ({"solution": "$\\boxed{3}$", "answer": "notfound"}, "3"),
        ({"solution": "$\\boxed{3}$", "ground_truth": " "}, "3"),
        ({"solution": "$\\boxed{3}$", "answer": None}, "3"),
        ({"ground_truth": "5"}, "5"),
    ],
)
def test_an_answer_may_stand_in_the_solution(tmp_path, fields, answer):
    row = {"problem": "?", "source": "cn_k12", "messages": [ASK, SAY], **fields}
    (found,) = problems(write(tmp_path / "f.jsonl", [row]))
    assert (found.answer, found.source, found.extra) == (answer, "cn_k12", {"messages": [ASK, SAY]})


@pytest.mark.parametrize(
    "fields",
    [
        {"solution": "It is so."},
        {"solution": "$\\boxed{1 + {2}$"},
        {"solution": "$\\boxed{}$"},
        {"solution": "First $\\boxed{1}$ and then $\\boxed{2"},
        {"solution": "As it is so.", "answer": "proof"},
    ],
)
def test_rows_without_an_answer_are_counted_and_are_not_malformed(tmp_path, fields):
    rejects = tmp_path / "rejects"
    good = {"problem": "1+1?", "solution": "$\\boxed{2}$", "id": "good"}
    path = write(tmp_path / "f.jsonl", [{"problem": "?", **fields}, good])
    found = records.read_answered(DataConfig(path), rejects)
    assert found.problems == [Problem("good", "1+1?", "2")]  # and no more than grading needs
    assert found.num_unanswered == 1
    assert "no answer, neither" in json.loads(rejects.read_text())["reason"]
    with pytest.raises(ValueError, match="1 of 2 rows are malformed"):
        problems(path)


def test_malformed_rows_stop_the_reading_of_answered_ones_too(tmp_path):
    rows = [{"problem": "?", "solution": "No."}, {"problem": 1, "answer": "2"}]
    path = write(tmp_path / "f.jsonl", [*rows, {"problem": "?", "answer": "2"}])
    with pytest.raises(ValueError, match="are malformed"):
        records.read_answered(DataConfig(path))
    assert records.read_answered(DataConfig(path, max_reject_fraction=0.4)).num_unanswered == 1


def test_questions_are_read_without_answers(tmp_path):
    rows = [{"id": "a", "question": "1+1?"}, PRIME_ROW, {"problem": "2+2?", "answer": 4}]
    found = records.read_questions(DataConfig(write(tmp_path / "f.jsonl", rows)))
    assert found == [("a", "1+1?"), ("f:2", "What is 1+1?"), ("f:3", "2+2?")]
