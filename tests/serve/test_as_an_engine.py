"""`synth` and `eval` with a server as their engine: the same rows as ever, also after a cut."""

import json

import fakes
import pytest

from jaxmath import __main__ as cli
from jaxmath import config as config_lib
from jaxmath.data import tokenizer
from jaxmath.decode import remote
from jaxmath.runs import evaluate, problems, serve, synth

NUM_QUESTIONS, NUM_SAMPLES = 12, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "problems"
    problems.run(
        problems.ProblemsConfig(str(folder), num_train=NUM_QUESTIONS, num_test=12, levels=(1,))
    )
    return folder


@pytest.fixture(scope="module")
def tokens(data):
    return tokenizer.Tokenizer(tokenizer.TokenizerConfig(str(data / "tokenizer")))


@pytest.fixture(scope="module")
def answers(data):
    lines = (data / "train.jsonl").read_text().splitlines()
    return {row["problem"]: row["answer"] for row in map(json.loads, lines)}


@pytest.fixture
def session(tokens, answers):
    """Knows all the answers, and gives them two times in three."""

    def answer(request):
        text = tokens.decode(request.tokens)
        gold = next(answers[question] for question in answers if question in text)
        right = request.sample % 3 > 0
        return [*tokens.encode(f"So: \\boxed{{{gold if right else 'no'}}}"), tokens.eos_ids[0]]

    return fakes.FakeSession(answer, decode=tokens.decode, eos=tokens.eos_ids[0])


@pytest.fixture
def live(tokens, session):
    service = fakes.service(
        session,
        max_waiting=1000,
        codec=serve.codec_of(tokens),
        limits=fakes.limits(vocab_size=512, max_prompt_tokens=256),
    )
    with fakes.live(service) as (_, client):
        yield str(client.base_url)


def fields(folder, output, url, **changes):
    return {
        "output": str(output),
        "tokenizer": {"path": str(folder / "tokenizer")},
        "engine": {
            "kind": "openai",
            "base_url": f"{url}/v1",
            "model": "tiny",
            "concurrency": 5,
            "retries": 2,
        },
        "decode": {"slots": 1, "max_prompt_tokens": 256},
        "num_samples": NUM_SAMPLES,
        "sampling": {"temperature": 0.7, "max_tokens": 50},
        "verify": {"num_workers": 1},
        **changes,
    }


def synth_config(data, output, url, **changes):
    source = {"path": str(data / "train.jsonl")}
    return config_lib.from_dict(
        synth.SynthRun,
        fields(data, output, url, data=source, shard_questions=4, prompt_style="plain", **changes),
    )


def eval_config(data, output, url, **changes):
    sets = {"seen": {"path": str(data / "train.jsonl")}}
    return config_lib.from_dict(
        evaluate.EvalRun, fields(data, output, url, problems=sets, **changes)
    )


def rows(folder, pattern):
    lines = [
        line for path in sorted(folder.glob(pattern)) for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def asked(session):
    return [request.name for what, request in session.log if what == "submit"]


def fail_after(session, count):
    """The decoder of the server dies after so many answers."""
    good = session.answer

    def answer(request):
        if len(asked(session)) > count:
            session.fails = RuntimeError("power cut")
        return good(request)

    session.answer = answer


def test_synthesis_from_a_server(data, session, live, tmp_path):
    report = synth.run(synth_config(data, tmp_path, live))
    found = rows(tmp_path, "shards/*.jsonl")
    assert [(row["problem_id"], row["sample"]) for row in found] == [
        (i, j) for i in range(NUM_QUESTIONS) for j in range(NUM_SAMPLES)
    ]
    right = sum(row["correct"] for row in found)
    assert 0 < right < len(found) and report.summary["kept"] == right
    assert len(rows(tmp_path, "sft.jsonl")) == right
    assert all(row["num_tokens"] > 5 and row["finish_reason"] == "stop" for row in found)
    assert len(asked(session)) == len(set(asked(session))) == len(found)


def test_an_evaluation_of_a_server(data, session, live, tmp_path):
    report = evaluate.run(eval_config(data, tmp_path, live))
    found = rows(tmp_path, "samples/seen.jsonl")
    assert len(found) == NUM_QUESTIONS * NUM_SAMPLES == report.summary["seen"]["rows"]
    assert 0 < report.summary["seen"]["accuracy"] < 1
    assert all(row["logprob"] < 0 and row["prompt"].startswith("<|im_start|>") for row in found)


@pytest.mark.parametrize("takes_ids", [True, False])
def test_ids_and_text_put_the_same_question(data, session, live, tmp_path, monkeypatch, takes_ids):
    if not takes_ids:
        monkeypatch.setattr(remote.RemoteEngine, "_first_answer", first_refused)
    evaluate.run(eval_config(data, tmp_path, live))
    prompts = {request.tokens for what, request in session.log if what == "submit"}
    first = min(prompts)
    assert len(prompts) == NUM_QUESTIONS
    codec = serve.codec_of(tokenizer.Tokenizer(tokenizer.TokenizerConfig(str(data / "tokenizer"))))
    question = codec.decode(first).removeprefix("user\n").removesuffix("\nassistant\n")
    assert tuple(codec.encode_chat([{"role": "user", "content": question}])) == first


async def first_refused(self, client, request):
    self._as_text = True
    return await self._answer(client, request)


@pytest.mark.parametrize(
    ("module", "config_for", "pattern"),
    [
        (synth, synth_config, "shards/*.jsonl"),
        (evaluate, eval_config, "samples/*.jsonl"),
    ],
)
def test_a_run_whose_server_died_goes_on_where_it_was(
    data, tokens, session, live, tmp_path, capfd, module, config_for, pattern
):
    good = session.answer
    module.run(config_for(data, tmp_path / "whole", live))
    expected = rows(tmp_path / "whole", pattern)

    service = fakes.service(
        cut := fakes.FakeSession(good, decode=tokens.decode, eos=tokens.eos_ids[0]),
        codec=serve.codec_of(tokens),
        limits=fakes.limits(vocab_size=512, max_prompt_tokens=256),
    )
    fail_after(cut, 20)
    with fakes.live(service) as (_, client):
        config = config_for(data, tmp_path / "run", str(client.base_url))
        with pytest.raises(ValueError, match="failed 3 times, lastly: status 500"):
            module.run(config)
    done = rows(tmp_path / "run", pattern)
    assert 12 <= len(done) < len(expected)  # a shard, or all that was answered
    journals = (tmp_path / "run").rglob("*.journal")  # answered, of a shard that is not whole
    num_done = len(done) + sum(path.read_bytes().count(b"\n") for path in journals)

    session.log.clear()
    module.run(config_for(data, tmp_path / "run", live))  # at another address, if need be
    assert rows(tmp_path / "run", pattern) == expected
    assert len(asked(session)) == len(expected) - num_done


def test_rows_of_another_model_are_not_mixed_in(data, live, tmp_path):
    engine = fields(data, tmp_path, live)["engine"]
    for module, config_for in ((synth, synth_config), (evaluate, eval_config)):
        folder = tmp_path / module.__name__
        module.run(config_for(data, folder, live))
        with pytest.raises(config_lib.ConfigError, match="another engine"):
            module.run(config_for(data, folder, live, engine=engine | {"model": "other"}))


def test_the_engine_stands_in_the_plan_and_needs_no_model(data, tmp_path, capsys):
    path = tmp_path / "synth.yaml"
    path.write_text(
        config_lib.dump(synth_config(data, tmp_path, "http://far.example", mesh={"tensor": 1024}))
    )
    assert cli.main(["synth", str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "# engine: tiny at http://far.example/v1, 5 at a time" in printed
    assert "init_from: null" in printed


def test_without_a_server_a_teacher_is_needed(data, tmp_path):
    with pytest.raises(config_lib.ConfigError, match="name the teacher, or a server in engine"):
        synth_config(data, tmp_path, "http://far.example", engine={})
    with pytest.raises(config_lib.ConfigError, match="model and init_from are both null"):
        eval_config(data, tmp_path, "http://far.example", engine={})
