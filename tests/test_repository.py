"""Claims about the source itself: layers, names, sizes, and nothing of one machine."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxmath"

# A room imports only from groups to its left; rooms of one group do not import each other.
GROUPS = [
    ("config", "sharding", "metrics"),
    ("kernels",),
    ("model",),
    ("data", "verify", "decode", "checkpoint"),
    ("train",),
    ("rl", "eval", "plan", "serve"),
    ("runs",),
    ("__main__",),
]
LEVEL = {room: level for level, group in enumerate(GROUPS) for room in group}

MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("jaxmath", "tests", "scripts")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sh")
)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, top_level_only=False):
    """(line, dotted name) of everything a file imports; `from a import b` is a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    own = module_of(path).split(".")[1:2]
    if not own:
        return  # jaxmath/__init__.py
    for line, name in imports(path):
        if name.split(".")[0] != "jaxmath":
            continue
        room = name.split(".")[1]
        assert room in LEVEL, f"{name_of(path)}:{line} imports {name}, a room not in GROUPS"
        assert room == own[0] or LEVEL[room] < LEVEL[own[0]], f"{name_of(path)}:{line}: {name}"


def test_every_room_has_its_place():
    rooms = {module_of(path).split(".")[1] for path in MODULES if path.parent != ROOT / "jaxmath"}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms | files <= set(LEVEL)


WITHOUT_JAX = ("data", "verify")


def test_data_and_verify_load_no_jax():
    """They run in worker processes, where a second JAX would claim the accelerator."""
    names = [module_of(p) for p in MODULES if p.parent.name in WITHOUT_JAX]
    assert len(names) > len(WITHOUT_JAX)
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    for banned in ("jax", "flax", "optax"):
        assert banned not in sys.modules, f"{{name}} loads {{banned}}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SLOW = ("transformers", "orbax", "datasets", "torch", "grain", "sympy", "tensorboardX", "wandb")


def test_importing_the_package_loads_no_slow_library():
    """Modules that take a second each are imported by the function that needs them."""
    for path in MODULES:
        for line, name in imports(path, top_level_only=True):
            assert name.split(".")[0] not in SLOW, f"{name_of(path)}:{line}: {name}"


SUFFIX = re.compile(r"_([A-Za-z1]+)$")


def products(path):
    """(call, subscripts) of every jnp.einsum and linear whose subscripts are written out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("jnp.einsum", "linear"):
            subscripts = node.args[0]
            if isinstance(subscripts, ast.Constant):
                yield node, subscripts.value


def array_name(node):
    """`x_BTD` of x_BTD, self.x_BTD, x_BTD[...], x_BTD.astype(...); None for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Subscript):
        return array_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "astype":
        return array_name(node.func.value)
    return None


def check_suffix(name, letters, where):
    found = SUFFIX.search(name)
    assert found, f"{where}: {name} has no suffix, expected {letters}"
    assert found[1] == letters, f"{where}: {name} stands for {letters}"


def test_einsum_letters_are_the_suffixes_of_the_operands():
    seen = 0
    for path in MODULES:
        for call, subscripts in products(path):
            where = f"{name_of(path)}:{call.lineno}"
            letters = subscripts.partition("->")[0].split(",")
            for expected, operand in zip(letters, call.args[1:], strict=True):
                if (name := array_name(operand)) is not None:
                    check_suffix(name, expected, where)
                    seen += 1
    assert seen >= 20


def test_einsum_results_are_named_for_their_letters():
    seen = 0
    for path in MODULES:
        results = {ast.dump(call): subscripts for call, subscripts in products(path)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and ast.dump(node.value) in results:
                letters = results[ast.dump(node.value)].partition("->")[2]
                check_suffix(array_name(node.targets[0]), letters, f"{name_of(path)}:{node.lineno}")
                seen += 1
    assert seen >= 5


def test_no_uninitialised_array():
    """jnp.empty is zeros on one release and garbage on the next; 0 * NaN is NaN."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            banned = isinstance(node, ast.Attribute) and node.attr in ("empty", "empty_like")
            if banned and isinstance(node.value, ast.Name):
                assert node.value.id != "jnp", f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_config_is_yaml_that_opens_like_a_lab_note(path):
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    assert text.startswith("# ")


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".py"], ids=name_of)
def test_files_hold_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def test_nothing_names_one_machine():
    roots = "|".join(("work", "opt", "home", "root", "mnt", "Users"))
    machine_path = re.compile(rf"[\"'=\s(](/(?:{roots})/[\w.-]+)")
    files = [*SOURCES, *CONFIGS, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.txt")]
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not machine_path.search(line), f"{name_of(path)}:{number}: {line.strip()}"


def test_the_machine_path_pattern_finds_one():
    line = json.dumps({"path": "/".join(("", "home", "me", "data"))})
    assert re.search(r"[\"'=\s(](/(?:home)/[\w.-]+)", line)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_opens_with_its_story(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body


def test_test_files_mirror_the_package():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= rooms
