import dataclasses

import yaml

from jaxmath.data import card

FACTS = card.CardFacts(
    num_records=12_345,
    teacher="Qwen/QwQ-32B-Preview",
    source="AI-MO/NuminaMath-CoT (train)",
    prompt=[
        {"role": "system", "content": "Be ```brief```."},
        {"role": "user", "content": "{question}"},
    ],
    sft_prompt=[{"role": "user", "content": "{question}"}],
    sampling={"temperature": 0.9},
    verifier="Graded by rules.",
    grading={"timeout_s": 5.0},
    filters={"right": True, "pass_rate": [0.1, 0.9], "max_tokens": None},
    responses={"kept": 12_345, "wrong": 2},
    questions={"rows": 9000},
    decontamination={"matches listed": 3},
    benchmarks={"a|b": 500},
)


def parts(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_is_what_the_hub_reads():
    front, _ = parts(card.render(card.CardConfig("T: a set", "apache-2.0"), FACTS, "data/train-*"))
    assert (front["license"], front["pretty_name"]) == ("apache-2.0", "T: a set")
    assert front["size_categories"] == ["10K<n<100K"]
    (config,) = front["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train-*"}]


def test_what_was_done_stands_in_the_body():
    _, body = parts(card.render(card.CardConfig(note="By us."), FACTS, "x"))
    for text in ("By us.", "12,345 conversations", "Qwen/QwQ-32B-Preview", "| wrong | 2 |"):
        assert text in body
    assert "| pass_rate | [0.1, 0.9] |" in body and "| max_tokens | null |" in body
    assert "| a\\|b | 500 |" in body and "Graded by rules." in body
    assert "````text\n[system]\nBe ```brief```.\n[user]\n{question}\n````" in body


def test_a_licence_that_nobody_stated_is_unknown():
    front, body = parts(card.render(card.CardConfig(), FACTS, "x"))
    assert front["license"] == "unknown" and "Unknown: none was stated." in body


def test_sizes_have_their_categories():
    for count, name in (
        (0, "n<1K"),
        (1000, "1K<n<10K"),
        (999_999, "100K<n<1M"),
        (10**6, card.LARGEST),
    ):
        facts = dataclasses.replace(FACTS, num_records=count)
        assert parts(card.render(card.CardConfig(), facts, "x"))[0]["size_categories"] == [name]
