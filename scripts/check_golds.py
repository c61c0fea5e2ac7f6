"""Which reference answers of the benchmarks a grader does not find equal to themselves.

    python scripts/check_golds.py ../shared/data/eval --grader qwen

One line per benchmark on stdout; the answers themselves, some of each, on stderr.
"""

import argparse

from jaxmath.eval import benchmarks
from jaxmath.runs import benchmark_tasks
from jaxmath.verify import graders, pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of the benchmarks' JSONL files")
    parser.add_argument("--grader", choices=list(graders.GRADERS), default="strict")
    parser.add_argument("--gold", choices=("answer", "eval_answer"), default="answer")
    arguments = parser.parse_args()
    total = failing = 0
    with pool.VerifierPool(pool.VerifyConfig(grader=arguments.grader)) as verifier:
        for name in benchmarks.BENCHMARKS:
            problems = benchmarks.load(name, arguments.folder)
            golds = {p.id: benchmark_tasks.gold_of(p, arguments.gold) for p in problems}
            found = benchmark_tasks.bad_golds(name, golds, verifier, arguments.grader)
            print(f"{name}: {len(found)} of {len(golds)}", flush=True)
            total, failing = total + len(golds), failing + len(found)
    print(f"all: {failing} of {total} under {arguments.grader}, {arguments.gold}")


if __name__ == "__main__":
    main()
