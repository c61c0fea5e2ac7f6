"""How fast synthesis collects, commits and decontaminates, and what memory that takes.

python scripts/bench_synth.py collect 200000 [FOLDER]    made-up responses of some 2,500 characters
python scripts/bench_synth.py decontaminate QUESTIONS.jsonl BENCHMARKS
"""

import pathlib
import random
import resource
import sys
import tempfile
import time

from jaxmath import config as config_lib
from jaxmath.data import card, claims, decontaminate, records, selection, shards
from jaxmath.runs import collect, questions

NUM_SAMPLES, SHARD_QUESTIONS = 4, 1024
FILTERS = {
    "max_repeated_ngrams": 0.5,
    "max_line_repeats": 5,
    "max_foreign_letters": 0.1,
    "distinct": True,
    "pass_rate": [0.1, 0.9],
    "max_per_question": 2,
}
ABOUT = {"teacher": "none", "source": "none", "prompt": [], "sft_prompt": []}
ABOUT |= {"sampling": {}, "grading": {}, "decontamination": {}}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds since it was made, on the wall and of this process's CPU."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def cpu_s(self) -> float:
        return time.process_time() - self.cpu

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.wall:.1f} s ({self.cpu_s():.1f} s of CPU)"


def response(draw: random.Random, words: list[str]) -> str:
    lines = (" ".join(draw.choices(words, k=12)) for _ in range(30))
    return "\n".join(lines) + f"\n\\boxed{{{draw.randrange(100)}}}"


def fill(store: shards.Shards, num_rows: int) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 10))) for _ in range(3000)]
    for shard in range(store.num_shards):
        rows = {}
        for question in range(shard * SHARD_QUESTIONS, (shard + 1) * SHARD_QUESTIONS):
            for sample in range(NUM_SAMPLES):
                if question * NUM_SAMPLES + sample >= num_rows:
                    break
                rows[question, sample] = {
                    "prompt": " ".join(draw.choices(words, k=40)),
                    "response": response(draw, words),
                    "problem_id": question,
                    "ground_truth": "1",
                    "correct": (right := draw.random() < 0.6),
                    "sample": sample,
                    "outcome": "right" if right else "wrong",
                    "num_tokens": 700,
                    "finish_reason": "stop",
                }
        store.commit(shard, rows, {"verifier": "none", "prompts_too_long": []})


def bench_collect(num_rows: int, folder: pathlib.Path) -> None:
    num_shards = -(-num_rows // (SHARD_QUESTIONS * NUM_SAMPLES))
    store = shards.Shards(folder / "shards", num_shards)
    if store.missing():
        clock = Clock()
        fill(store, num_rows)
        print(f"{num_rows:,} rows in {num_shards} shards made and committed: {clock}")
    filters = config_lib.from_dict(selection.FilterConfig, FILTERS)
    print(f"peak so far {peak_mb():.0f} MiB, of which a shard being made")
    choice = questions.Choice({}, frozenset(), {}, 0, {})
    clock = Clock()
    faults = store.verify()
    size = sum(record.bytes for record in store.records()) / 2**20
    print(f"{size:,.0f} MiB verified, {len(faults)} damaged: {clock}")
    filters = config_lib.from_dict(selection.FilterConfig, FILTERS)
    for name, chosen in (("right alone", selection.FilterConfig()), ("every filter", filters)):
        job = collect.Job(
            folder, store, choice, chosen, "intellect-sft", NUM_SAMPLES, 0,
            card.CardConfig(), ABOUT, None,
        )  # fmt: skip
        clock = Clock()
        with claims.Claims(store.folder / "claims", 60) as held:
            summary = collect.collect(job, held)
        print(
            f"{name}: {num_rows:,} rows, {summary['kept']:,} kept: {clock}, "
            f"{num_rows / clock.cpu_s():,.0f} rows a CPU second; peak {peak_mb():.0f} MiB"
        )


def bench_decontaminate(path: str, benchmarks: str) -> None:
    config = decontaminate.DecontaminateConfig({"all": records.DataConfig(benchmarks)})
    clock = Clock()
    index = decontaminate.Benchmarks(decontaminate.read(config), config)
    print(f"index of {len(index.questions):,} questions: {clock}")
    asked = records.read_questions(records.DataConfig(path))
    clock = Clock()
    found = [index.matches(text) for _, text in asked]
    cpu_s = clock.cpu_s()
    out = sum(any(match.left_out for match in matches) for matches in found)
    print(
        f"{len(asked):,} questions: {clock}, {len(asked) / cpu_s:,.0f} a CPU second; "
        f"{sum(map(bool, found))} with a match, {out} left out; peak {peak_mb():.0f} MiB"
    )


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "decontaminate":
        bench_decontaminate(*arguments)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            bench_collect(int(arguments[0]), pathlib.Path([*arguments, scratch][1]))
