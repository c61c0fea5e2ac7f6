"""The command line: what it prints, what it returns, and what it lets through."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxmath import __main__ as cli
from jaxmath.runs import problems, sft

VERBS = [*cli.CONFIGURED, "convert", "verify", "plan", "replay"]


@pytest.fixture(autouse=True)
def session_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "as the session has it")


@pytest.fixture
def problems_file(tmp_path):
    path = tmp_path / "problems.yaml"
    path.write_text(f"folder: {tmp_path}/set\nnum_train: 300\nnum_test: 20\n")
    return str(path)


def refused(capsys, *argv):
    """The one line on stderr of a command that is refused, and its exit code."""
    code = cli.main(list(argv))
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


@pytest.mark.parametrize("argv", [[], *([verb] for verb in VERBS), ["convert", "import"]])
def test_help_is_everywhere(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*argv, "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and printed.startswith("usage: jaxmath")
    if not argv:
        assert all(f"    {verb}" in printed for verb in VERBS)
    elif argv[0] in cli.CONFIGURED:
        assert "--dry-run" in printed and "CONFIG.yaml" in printed


@pytest.mark.parametrize("argv", [["train"], [], ["sft"], ["verify"], ["convert"]])
def test_a_command_that_is_none_is_a_usage_error(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2 and "usage: jaxmath" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("num_trian=3", "did you mean 'num_train'?"),
        ("num_train=many", "expected a whole number, got 'many'"),
        ("num_train=0", "num_train must be at least 1, got 0"),
    ],
)
def test_a_config_error_is_one_line_and_64(problems_file, override, named, capsys):
    code, line = refused(capsys, "problems", problems_file, override)
    assert code == cli.CONFIGURATION == 64
    assert line.startswith("ConfigError: ") and named in line


def test_a_missing_config_is_named(capsys, tmp_path):
    code, line = refused(capsys, "sft", str(tmp_path / "no.yaml"))
    assert code == 64 and "no.yaml: cannot be read (No such file or directory)" in line
    code, line = refused(capsys, "sft", "max_steps=3")
    assert code == 64 and "expected CONFIG.yaml before the override 'max_steps=3'" in line
    code, line = refused(capsys, "eval")
    assert code == 64 and "eval needs CONFIG.yaml, or --compare" in line


def test_bad_input_is_one_line_and_65(tmp_path, capsys, root):
    code, line = refused(
        capsys,
        "sft",
        str(root / "configs/sft.yaml"),
        f"output={tmp_path}/run",
        f"tokenizer.path={tmp_path}",
        "mesh.fsdp=8",
    )
    assert code == cli.INPUT == 65
    assert line.startswith("ValueError: ") and "this folder holds no tokenizer" in line
    code, line = refused(capsys, "eval", "--compare", str(tmp_path), str(tmp_path))
    assert code == 65 and "expected the output folder of an eval" in line
    code, line = refused(capsys, "verify", str(tmp_path / "no"), "--out", str(tmp_path / "out"))
    assert code == 65 and "no such file" in line
    code, line = refused(capsys, "replay", "--case", str(tmp_path))
    assert code == 65


def test_an_error_that_is_not_ours_is_not_swallowed(problems_file, monkeypatch):
    def wrong_shapes(config):
        return jnp.zeros((2, 3)) @ jnp.zeros((2, 3))

    monkeypatch.setattr(problems, "run", wrong_shapes)
    with pytest.raises(TypeError, match="dot_general"):
        cli.main(["problems", problems_file])

    def value_error_inside_jax(config):
        return jnp.zeros((4,)).reshape(3)

    monkeypatch.setattr(problems, "run", value_error_inside_jax)
    with pytest.raises((TypeError, ValueError), match="reshape") as found:
        cli.main(["problems", problems_file])
    assert "jax" in found.traceback[-1].path.parts


def test_a_value_error_of_a_library_is_not_swallowed(problems_file, monkeypatch):
    monkeypatch.setattr(problems, "run", lambda config: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        cli.main(["problems", problems_file])


def test_dry_run_prints_config_mesh_parameters_and_budget_and_stops(
    root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sft, "run", None)
    argv = ["sft", str(root / "configs/sft.yaml"), f"output={tmp_path}/run", "--dry-run"]
    assert cli.main([*argv, "batch_rows=64"]) == 0  # overrides may stand behind an option
    printed = capsys.readouterr().out
    assert "batch_rows: 64\n" in printed and "learning_rate: 5.0e-06" in printed
    assert "# mesh: data=1, fsdp=8, tensor=1" in printed and "# devices: 8 x cpu" in printed
    assert "# parameters: 7,615,616,512" in printed
    assert "# tokens per update: 320000" in printed and "# tokens per micro-batch: 20000" in printed
    assert not (tmp_path / "run").exists()


def test_an_option_nobody_knows_is_a_usage_error(problems_file, capsys):
    for extra in (["--quick"], ["--dry-run", "--seed", "1"], ["--dry-run", "more"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["problems", problems_file, "num_train=300", *extra])
        assert stop.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_a_verb_prints_its_summary_and_where_things_are(problems_file, tmp_path, capsys):
    assert cli.main(["problems", problems_file, "num_test=10"]) == 0
    printed = capsys.readouterr().out
    assert "num_train: 300\nnum_test: 10\n" in printed and f"→ {tmp_path}/set" in printed
    assert len((tmp_path / "set/test.jsonl").read_text().splitlines()) == 10


def test_verify_grades_rows_in_order_and_keeps_what_it_cannot_read(tmp_path, capsys):
    rows = [
        {"gold": "4", "response": "So it is \\boxed{4}.", "id": "a"},
        {"gold": "4", "pred": "5", "outcome": "stale"},
        {"gold": "4"},
        {"gold": "\\frac{1}{2}", "pred": "0.5", "nested": {"kept": [1]}},
        {"gold": "4", "response": "I do not know."},
        {"gold": 4, "pred": "4"},
    ]
    lines = [json.dumps(row) for row in rows]
    lines[3:3] = ["{torn", "[1, 2]"]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    assert cli.main(["verify", str(source), "--out", str(out), "--workers", "1"]) == 0
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    outcomes = [row["outcome"] for row in graded]
    assert outcomes == ["right", "wrong", "error", "error", "error", "right", "no_answer", "error"]
    assert graded[0]["id"] == "a" and graded[5]["nested"] == {"kept": [1]}
    assert [row["rule"].split(":")[0] for row in graded if row["outcome"] == "error"] == [
        "line 3",
        "line 4",
        "line 5",
        "line 8",
    ]
    assert graded[3]["raw"] == "{torn" and graded[4]["raw"] == "[1, 2]"
    printed = capsys.readouterr().out
    assert "rows: 8\nright: 2\nwrong: 1\n" in printed and "error: 4" in printed


def test_verify_takes_a_grader_and_audits(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"gold": "0.5", "pred": "50"}\n')
    assert cli.main(["verify", str(source), "--grader", "qwen", "--workers", "1"]) == 0
    assert "right: 1" in capsys.readouterr().out
    assert cli.main(["verify", str(source), "--audit", "strict,qwen", "--workers", "1"]) == 0
    assert "1 of 1 rows are disputed" in capsys.readouterr().out
    code, line = refused(capsys, "verify", str(source), "--grader", "nope")
    assert code == 65 and "strict, lenient, prime, qwen; got 'nope'" in line


def test_replay_returns_the_code_of_the_comparison(shared, capsys):
    case = str(shared / "golden/prime_step")
    assert cli.main(["replay", "--case", case]) == 0
    assert "17 of 17" in capsys.readouterr().out
    assert cli.main(["replay", "--case", case, "--tolerance", "1e-9"]) == 1


def test_verify_does_not_start_jax(tmp_path):
    """Grading is for every machine and many processes: it must not pay for an accelerator."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"gold": "4", "pred": "4"}\n')
    code = (
        "import sys; from jaxmath import __main__ as cli\n"
        f"code = cli.main(['verify', {str(source)!r}, '--out', {str(tmp_path / 'o')!r}])\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
        "sys.exit(code)"
    )
    script = tmp_path / "main.py"
    script.write_text("if __name__ == '__main__':\n    " + code.replace("\n", "\n    ") + "\n")
    found = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr


def test_the_compilation_cache_is_private(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        cli._configure_jax("sft")
        folder = tmp_path / "jaxmath/xla"
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert folder.stat().st_mode & 0o077 == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
