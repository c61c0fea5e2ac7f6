"""`python -m jaxmath VERB CONFIG.yaml [section.field=value …]`"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence

from jaxmath import config as config_lib

# exit codes a supervisor can act on
CONFIGURATION, INPUT = 64, 65
DOES_NOT_FIT = 1  # of `plan`

# verb → (module in jaxmath.runs, its config class, help)
CONFIGURED = {
    "problems": ("problems", "ProblemsConfig", "write generated maths problems and a tokenizer"),
    "synth": ("synth", "SynthRun", "sample a teacher's solutions and keep the right ones"),
    "sft": ("sft", "SftRun", "supervised fine-tuning, or training from random parameters"),
    "prime": ("prime", "PrimeRun", "online reinforcement learning with an implicit PRM"),
    "eval": ("evaluate", "EvalRun", "benchmarks: sample, grade, score with intervals"),
    "generate": ("generate", "GenerateRun", "prompts in, text out"),
    "serve": ("serve", "ServeRun", "the model behind OpenAI's HTTP interface"),
    "recipe": ("recipe", "RecipeRun", "all stages of one file, in order, resumable"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code: 0, 64 (configuration), 65 (input), or the verb's own.

    Anything else that goes wrong is a bug: its traceback is shown.
    """
    arguments = _parse(argv)
    try:
        _configure_jax(arguments.verb)
        return arguments.call(arguments) or 0
    except config_lib.ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        return CONFIGURATION
    except ValueError as error:
        if not _raised_by_us(error):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return INPUT


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes positional arguments from one place only; overrides may stand anywhere."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = getattr(arguments, "overrides", None)
    if rest and (overrides is None or any(a.startswith("-") or "=" not in a for a in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxmath",
        description="INTELLECT-MATH in JAX: synthesis, SFT, PRIME, evaluation, conversion.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, cls, text) in CONFIGURED.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument("config", metavar="CONFIG.yaml", nargs="?" if verb == "eval" else None)
        sub.add_argument("overrides", nargs="*", metavar="section.field=value")
        sub.add_argument(
            "--dry-run",
            action="store_true",
            help="print the resolved config, mesh, parameter count and token budget, and stop",
        )
        if verb == "eval":
            _add_eval(sub)
        if verb == "generate":
            sub.add_argument("--prompt", help="answer this one question and print the response")
        sub.set_defaults(call=_run_configured, module=module, cls=cls)

    convert = verbs.add_parser("convert", help="checkpoints from and to Hugging Face format")
    directions = convert.add_subparsers(dest="direction", required=True)
    for direction, (first, second) in {
        "import": ("HF_FOLDER", "CHECKPOINT"),
        "export": ("CHECKPOINT", "HF_FOLDER"),  # a checkpoint folder, or that of a run
    }.items():
        sub = directions.add_parser(direction, help=f"{first} to {second}")
        sub.add_argument("source", metavar=first)
        sub.add_argument("target", metavar=second)
        sub.add_argument(
            "--dtype", choices=("float32", "bfloat16", "float16"), help="default: kept"
        )
        if direction == "export":
            sub.add_argument("--step", type=int, help="default: the newest")
            sub.add_argument("--overwrite", action="store_true", help="replace an existing folder")
            sub.add_argument("--ema", action="store_true", help="the averaged weights")
            sub.add_argument("--base", metavar="MODEL", help="where the model of adapters is now")
            sub.add_argument(
                "--adapters", action="store_true", help="those of a LoRA run, in PEFT's format"
            )
        sub.set_defaults(call=_convert)

    verify = verbs.add_parser("verify", help="grade rows of gold and response, or gold and pred")
    verify.add_argument("input", metavar="IN.jsonl")
    verify.add_argument("--out", metavar="OUT.jsonl", help="the rows with their verdicts")
    verify.add_argument("--grader", metavar="NAME", default="strict", help="default: strict")
    verify.add_argument(
        "--audit",
        nargs="?",
        metavar="NAME,NAME",
        const="",
        help="grade by several graders, default all, and print where they disagree",
    )
    verify.add_argument("--show", type=int, default=20, help="disputed rows that an audit prints")
    verify.add_argument("--workers", type=int, help="default: one a core")
    verify.add_argument("--timeout-s", type=float, default=5.0, help="of work, per row")
    verify.set_defaults(call=_verify)

    plan = verbs.add_parser("plan", help="memory, time and verdict of a run on absent devices")
    plan.add_argument("config", metavar="CONFIG.yaml")
    plan.add_argument("overrides", nargs="*", metavar="section.field=value")
    plan.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:8x8, v4:2x2x4, v5p:2x2x4, v6e:2x4, h100:8, h200:1, cpu:8",
    )
    plan.add_argument("--verb", help="whose config it is; default: found out from its fields")
    plan.add_argument("--search", action="store_true", help="if it does not fit, find what does")
    plan.add_argument("--json", action="store_true", help="the numbers, for programs")
    plan.add_argument(
        "--response-tokens", type=int, metavar="N", help="mean length, for the estimate of time"
    )
    plan.set_defaults(call=_plan)

    replay = verbs.add_parser("replay", help="recompute a recorded PRIME update and compare")
    replay.add_argument("--case", required=True, metavar="FOLDER")
    replay.add_argument("--tolerance", type=float, default=1e-4, help="relative")
    replay.set_defaults(call=_replay)
    return parser


def _add_eval(sub: argparse.ArgumentParser) -> None:
    """What `eval` makes of finished evaluations, in place of a config."""
    finished = sub.add_mutually_exclusive_group()
    finished.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="paired difference between two runs, with an interval, and the questions that flipped",
    )
    finished.add_argument(
        "--report",
        nargs="+",
        metavar="RUN",
        help="runs beside the scores that INTELLECT-MATH published",
    )
    finished.add_argument(
        "--regrade", metavar="RUN", help="grade kept samples again, beside the old verdicts"
    )
    sub.add_argument(
        "--out", metavar="FILE", help="of --compare: JSON; of --report: Markdown (.md) or text"
    )
    sub.add_argument(
        "--flips", type=int, metavar="N", help="of --compare: questions named (default 10)"
    )
    sub.add_argument("--grader", help="of --regrade: a grader's name, or published")
    sub.add_argument(
        "--gold", choices=("answer", "eval_answer"), help="of --regrade: which reference answer"
    )


def _eval_finished(arguments: argparse.Namespace) -> bool:
    """Deals with `--compare`, `--report` and `--regrade`; False where none was asked for."""
    belongs = {"out": ("compare", "report"), "flips": ("compare",)}
    belongs |= {"grader": ("regrade",), "gold": ("regrade",)}
    for option, owners in belongs.items():
        stray = getattr(arguments, option) is not None
        if stray and not any(getattr(arguments, owner) for owner in owners):
            wanted = " or ".join(f"--{owner}" for owner in owners)
            raise config_lib.ConfigError(f"--{option} belongs to {wanted}; drop it")
    if arguments.compare:
        from jaxmath.runs import results

        num_flips = 10 if arguments.flips is None else arguments.flips
        print(results.compare(*arguments.compare, num_flips=num_flips, out=arguments.out))
    elif arguments.report:
        from jaxmath.runs import results

        print(results.report(arguments.report, out=arguments.out))
    elif arguments.regrade:
        from jaxmath.runs import regrade

        report = regrade.run(arguments.regrade, arguments.grader, arguments.gold)
        for path in report.artefacts:
            print(f"→ {path}")
    else:
        return False
    return True


def _run_configured(arguments: argparse.Namespace) -> int:
    if arguments.verb == "eval" and _eval_finished(arguments):
        return 0
    module = importlib.import_module(f"jaxmath.runs.{arguments.module}")
    if arguments.config is None:
        raise config_lib.ConfigError("eval needs CONFIG.yaml, or --compare, --report or --regrade")
    path, overrides = arguments.config, list(arguments.overrides)
    if not pathlib.Path(path).exists() and "=" in path:
        raise config_lib.ConfigError(f"expected CONFIG.yaml before the override {path!r}")
    config = config_lib.load(getattr(module, arguments.cls), path, overrides)
    if arguments.dry_run:
        print(config_lib.dump(config), end="")
        for name, value in module.plan(config).items():
            print(f"# {name}: {value}")
        return 0
    if getattr(arguments, "prompt", None) is not None:
        module.answer(config, arguments.prompt, lambda text: print(text, end="", flush=True))
        print()
        return 0
    report = module.run(config)
    for name, value in report.summary.items():
        print(f"{name}: {value}")
    for path in report.artefacts:
        print(f"→ {path}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from jaxmath.runs import convert, models

    if arguments.direction == "import":
        convert.import_hf(arguments.source, arguments.target, dtype=arguments.dtype)
        print(f"→ {arguments.target}")
        return 0
    options = {name: getattr(arguments, name) for name in ("step", "overwrite", "ema", "base")}
    folder = models.checkpoint_path(arguments.source)
    if arguments.adapters:
        convert.export_peft(folder, arguments.target, **options)
    else:
        convert.export_hf(folder, arguments.target, arguments.dtype, **options)
    print(f"→ {arguments.target}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from jaxmath.runs import verify
    from jaxmath.verify import graders, pool

    config = pool.VerifyConfig(
        grader=arguments.grader, num_workers=arguments.workers, timeout_s=arguments.timeout_s
    )
    if arguments.audit is not None:
        names = [name for name in arguments.audit.split(",") if name] or list(graders.GRADERS)
        print(verify.audit(arguments.input, names, arguments.out, config, arguments.show).text())
        return 0
    for outcome, count in verify.run(arguments.input, arguments.out, config).items():
        print(f"{outcome}: {count}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from jaxmath.runs import plan, plan_search, session

    plan.on_cpu_alone()
    found = plan.answer(
        plan.ask(
            arguments.config,
            arguments.overrides,
            arguments.topology,
            arguments.verb,
            arguments.response_tokens,
        )
    )
    print(found.json() if arguments.json else found.text(), flush=True)
    if found.plan.fits:
        return 0
    if not arguments.search:
        session.say("--search looks for a micro-batch, a mesh and slots that fit")
        return DOES_NOT_FIT
    better = plan_search.search(found)
    print(better.json() if arguments.json else "\n" + better.text())
    return 0 if better.answer else DOES_NOT_FIT


def _replay(arguments: argparse.Namespace) -> int:
    from jaxmath.runs import replay

    return replay.run(arguments.case, tolerance=arguments.tolerance)


def _configure_jax(verb: str) -> None:
    """A compilation cache that outlives the process, in a folder only its owner can read."""
    # Orbax speaks of every option it derives, at the level of warnings.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if verb == "plan":  # XLA complains of compilations that take minutes; a plan says how many
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # What is compiled for absent devices cannot be loaded again.
    if verb in ("verify", "plan") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = root / "jaxmath" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # a read-only home costs compile time, nothing else
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _raised_by_us(error: BaseException) -> bool:
    """Whether the message comes from this package, so that a user can act on it."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(pathlib.Path(__file__).resolve().parent)
    return bool(frames) and frames[-1].filename.startswith(package)


if __name__ == "__main__":
    sys.exit(main())
