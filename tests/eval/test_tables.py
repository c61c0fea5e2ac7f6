"""Tables line up, and show what there is."""

from jaxmath.eval import comparisons, scores, tables

from .rows import run, same_text, sample


def cells(line):
    return [cell for cell in line.split("  ") if cell]


def test_a_table_of_single_runs_has_no_votes():
    rows = [
        scores.score("math500", run(*"1100")),
        scores.score("gsm8k", [sample("q0", 0, "timeout", finish_reason="length")]),
    ]
    header, first, second = tables.scores(rows).split("\n")
    assert len(header) == len(first) == len(second)
    assert header.split()[:4] == ["benchmark", "n", "k", "avg@k"]
    assert "pass@k" not in header and "maj@k" not in header and "grader" not in header
    low, high = 100 * rows[0].accuracy.low, 100 * rows[0].accuracy.high
    assert f"{low:.1f} to {high:.1f}" in first
    assert first.split()[:4] == ["math500", "4", "1", "50.0"]
    # cut, no answer, faults, bad gold, skipped, tokens, median, p95
    assert second.split()[-8:] == ["100.0", "0.0", "1", "0", "0", "10", "10", "10"]


def test_votes_have_their_intervals_and_another_grader_its_name():
    rows = run("1100", "1111", "0000", "1000")
    process_scores = dict.fromkeys((row.key for row in rows), 0.0)
    score = scores.score("b", rows, same_text, process_scores, grader="qwen", bad_golds=["q1"])
    single = scores.score("c", run(*"10"))
    header, first, second = tables.scores([score, single]).split("\n")
    assert len(header) == len(first) == len(second)
    for heading in ("grader", "pass@k", "maj@k", "prm@k", "vote"):
        assert heading in header.split()
    for estimate in (score.pass_at[4], score.majority, score.best_of, score.weighted_vote):
        low, high = 100 * estimate.low, 100 * estimate.high
        assert f"{100 * estimate.value:.1f} ({low:.1f} to {high:.1f})" in first
    assert first.split()[3] == "qwen" and first.split()[-5] == "1"
    assert cells(second)[6:10] == [" -"] * 4 or second.split().count("-") == 4


def test_the_comparison_is_in_points():
    row = comparisons.compare(run("00", "10", "11"), run("11", "11", "11"))
    header, line = tables.comparisons({"math500": row}).split("\n")
    assert len(header) == len(line)
    assert line.split()[:5] == ["math500", "3", "50.0", "100.0", "+50.0"]
    assert line.split()[-4:] == ["0.500", "-", "2", "0"]
    low, high = 100 * row.difference.low, 100 * row.difference.high
    assert f"{low:+.1f} to {high:+.1f}" in line


def test_flips_are_listed_with_both_verdicts():
    a = [sample(f"q{i}", 0, "right", pred="1" * 60, gold="x\ny") for i in range(3)]
    b = [sample(f"q{i}", 0, "no_answer", pred=None, gold="x\ny") for i in range(3)]
    row = comparisons.compare(a, b)
    text = tables.comparisons({"math500": row}, num_flips=2)
    heading, header, first, second = text.split("\n")[2:]
    assert heading == "math500: 2 of 3 questions that flipped"
    assert first.split() == ["q0", "x", "y", "right:", "1" * 39 + "…", "no_answer:", "-"]
    assert second.startswith("q1") and len(header) == len(first)
    assert "flipped" not in tables.comparisons({"math500": row})


def test_flips_of_sampled_runs_count_their_right_samples():
    row = comparisons.compare(run("1100"), run("1110"))
    assert "2 of 4 right  3 of 4 right" in tables.comparisons({"b": row}, num_flips=1)


def test_a_tiny_p_value_is_not_zero():
    row = comparisons.compare(run(*"0" * 40), run(*"1" * 40))
    assert tables.comparisons({"b": row}).count("<0.001") == 2


def test_markdown_has_the_same_cells():
    found = tables.markdown([["model", "a|b"], ["x", "1.0"]])
    assert found == "| model | a\\|b |\n|---|---|\n| x | 1.0 |"
