"""The grader `qwen`: the reading order and equality of the Qwen2.5-Math evaluation.

For whoever must reproduce numbers published with that harness; the reward is `grade`. Its order:
Minerva's phrase, the last box, "he answer is", "final answer is", "答案是", the last number; for a
reference A to E the last such letter. Reference and answer go through one chain of string rules
(units, degree and percent signs vanish, also words such as "a" or "by"), and are equal by text, as
numbers within 1e-4 or a hundred times more or less, item by item, or as formulas.

Formulas are read by `latex_prefix` and `plain_formula`, never evaluated as programs. Where the
original asks its third reader, latex2sympy, this one finds matrices unequal that are not equal cell
by cell; number words ("forty two") are read only below a million. Every LaTeX letter is a
variable there and here.
"""

import contextlib
import functools
import re

from jaxmath.verify import expression, hendrycks, latex_prefix, plain_formula, tolerant, verdict

Outcome = verdict.Outcome

MAX_CHARS = 4000  # of an answer; a longer one is compared as text only
MAX_ITEMS = 200

LAST_NUMBER = re.compile(r"-?\d*\.?\d+")
CHOICE = re.compile(r"\b(A|B|C|D|E)\b")


def grade_response(gold: str, response: str) -> verdict.Verdict:
    """Grade the answer that a whole response ends on."""
    found, rule = extract(response)
    if not found:
        return verdict.make(Outcome.NO_ANSWER, rule, gold=gold)
    return judge(gold, found, rule)


def grade_answer(gold: str, pred: str) -> verdict.Verdict:
    """Grade a bare answer."""
    if not pred.strip():
        return verdict.make(Outcome.NO_ANSWER, "empty answer", gold=gold, pred=pred)
    return judge(gold, cut(pred), "answer")


def judge(gold: str, found: str, how: str) -> verdict.Verdict:
    if not gold.strip():
        return verdict.make(Outcome.UNPARSEABLE_GOLD, "reference is empty", gold=gold)
    try:
        rule = equal(stripped(stripped(found)), stripped(gold))
    except RecursionError:
        return verdict.make(Outcome.WRONG, f"{how}: nested too deep", gold=gold, pred=found)
    if rule:
        return verdict.make(Outcome.RIGHT, f"{how}: {rule}", gold=gold, pred=found)
    return verdict.make(Outcome.WRONG, f"{how}: not equal", gold=gold, pred=found)


# ── extraction ──


def extract(response: str) -> tuple[str, str]:
    """(answer, how it was found); "" if nothing was."""
    text = response.replace("ки", "")
    if "final answer is $" in text and "$. I hope" in text:
        found = text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
        return cut(found), "Minerva phrase"
    if "boxed" in text:
        return cut(box(text[text.rfind("boxed") + len("boxed") :])), "box"
    for phrase in ("he answer is", "final answer is"):
        if phrase in text:
            return cut(text[text.rfind(phrase) + len(phrase) :].strip()), f"'{phrase}'"
    if "答案是" in text:
        found = text.split("答案是")[1].strip().split("\n\n")[0].strip()
        return cut(found), "'答案是'"
    numbers = LAST_NUMBER.findall(text.replace(",", ""))
    return (cut(numbers[-1]) if numbers else ""), "last number" if numbers else "no number"


BRACE = re.compile("[{}]")


def box(text: str) -> str:
    """What a box holds: up to its brace, or all that is left where it never closes; without a
    brace, up to the next dollar sign."""
    if not text.startswith("{"):
        return text.split("$", 1)[0].strip()
    depth = 0
    for brace in BRACE.finditer(text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[1 : brace.start()]
    return text[1:]


def cut(text: str) -> str:
    """An answer in one line, without the colon before it and the full stop after."""
    text = re.sub(r"\n\s*", "", text)
    text = text.removeprefix(":")
    return text.removesuffix(".").removesuffix("/")


# ── the chain of string rules ──

UNITS = """
east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|rd|o|gm
p . m|lb|tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|no change|men|soldier
pie|bc|excess|st|inches|noon|percent|by|gal|kmh|c|acre|rise|a . m|th|π r 2|sq|mark|l|toy|coin
sq . m|gallon|° f|profit|minw|yr|women|feet|am|pm|hr|cu cm|square|v â € ™|are|rupee|rounds|cubic|cc
mtr|s|ohm|number|kmph|day|hour|minute|min|second|man|woman|sec|cube|mt|sq inch|mp|∏ cm ³|hectare
more|sec|unit|cu . m|cm 2|rs .|rs|kg|g|month|km|m|cm|mm|apple|liter|loss|yard|pure|year|increase
decrease|d|less|Surface|litre|pi sq m|s .|metre|meter|inch
"""


@functools.cache
def unit_patterns() -> tuple[re.Pattern, ...]:
    """The words that vanish, in order: each where no letter or digit touches it; then their
    plurals."""
    names = [name for line in UNITS.strip("\n").split("\n") for name in line.split("|")]
    names += [name + "s" for name in names]
    return tuple(re.compile(r"(^|\W)" + name + r"($|\W)") for name in names)


def without_units(text: str) -> str:
    for _ in range(2):
        for pattern in unit_patterns():
            text = pattern.sub(r"\1\2", text) or text
    return text


SPELLINGS = (
    ("bmatrix", "pmatrix"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\neq", "\\ne"),
    ("\\leq", "\\le"), ("\\geq", "\\ge"), ("\\left", ""), ("\\right", ""), ("\\{", "{"),
    ("\\}", "}"),
)  # fmt: skip
SIGNS = (("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("$", ""), ("\\(", ""), ("\\)", ""))
NAMES = tuple((name + mark, "") for mark in ("=", "\\in", "\\to") for name in ("x", "y", "z"))
VALUES = (
    ("\\emptyset", "{}"), ("(-\\infty,\\infty)", "\\mathbb{R}"), ("\\%", ""), ("%", ""),
    (" .", " 0."), ("{.", "{0."), ("infinity", "\\infty"),
)  # fmt: skip


def replaced(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text


@functools.lru_cache(maxsize=4096)
def stripped(text: str) -> str:
    """An answer after the whole chain; one that is too long, without its outer spaces."""
    text = text.strip()
    if len(text) > MAX_CHARS:
        return text
    text = text.replace("\n", "").rstrip(".").replace("\\!", "")
    text = re.sub(r"\\begin\{array\}\{[^\n]*?\}", r"\\begin{pmatrix}", text)
    text = replaced(text.replace("\\end{array}", "\\end{pmatrix}"), SPELLINGS)
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    text = replaced(without_units(text), SIGNS)
    text = number_word(text)
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    text = replaced(replaced(text, NAMES), VALUES)
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = replaced(text, (("+\\inity", "\\infty"), ("and", ""), ("\\mathbf", "")))
    text = re.sub(r"\\mbox{.*?}", "", text)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0*$", r"\1", text)
    if not text:
        return text
    text = hendrycks.bare_value(text)
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    with contextlib.suppress(IndexError):  # a \\frac at the very end
        text = hendrycks.braced_fractions(text)
    return hendrycks.slash_fraction(text, roots=True)


ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: value for value, word in enumerate(re.findall(r"\w+", ONES))}
NUMBER_WORDS |= {word: 10 * tens for tens, word in enumerate(re.findall(r"\w+", TENS), start=2)}


def number_word(text: str) -> str:
    """`forty-two` as 42 and `007` as 7; words that name no number are passed over."""
    text_of_words = text.replace("-", " ").lower()
    if text_of_words.isdecimal():
        return str(int(text_of_words))
    words = text_of_words.split()
    known = [word for word in words if word in NUMBER_WORDS or word in ("hundred", "thousand")]
    if not known:
        return text
    thousands, hundreds = 0, 0
    for word in known:
        if word == "thousand":
            thousands, hundreds = thousands + (hundreds or 1) * 1000, 0
        elif word == "hundred":
            hundreds = (hundreds or 1) * 100
        else:
            hundreds += NUMBER_WORDS[word]
    return str(thousands + hundreds)


# ── equality ──


def equal(pred: str, gold: str) -> str | None:
    """The rule by which two answers are equal after the chain, or None."""
    if pred.strip().lower() == gold.strip().lower():
        return "same text"
    if gold in ("A", "B", "C", "D", "E") and last_choice(pred) == gold:
        return "last letter"
    numbers = as_number(pred), as_number(gold)
    if None not in numbers:
        return "number within 1e-4" if tolerant.close_or_percent(*numbers) else None
    if not pred or max(len(pred), len(gold)) > MAX_CHARS:
        return None
    pred, gold = pred.strip(), gold.strip()
    if "pmatrix" in pred and "pmatrix" not in gold:
        gold = set_as_matrix(gold)
    if hendrycks.same_but_for_brackets(pred.lower(), gold.lower()):
        return "same text but for brackets"
    if (
        is_list(pred)
        and is_list(gold)
        and equal_items(pred[1:-1].split(","), gold[1:-1].split(","))
    ):
        return "item by item"
    if is_matrix(pred) and is_matrix(gold) and equal_cells(pred, gold):
        return "cell by cell"
    signs = pred.count("="), gold.count("=")
    if signs == (1, 1):
        first, second = (tolerant_sides(text) for text in (pred, gold))
        if equal_formulas(first, second) or equal_formulas(f"-({first})", second):
            return "same equation"
    elif signs == (1, 0) and len(pred.split("=")[0].strip()) <= 2:
        if equal(pred.split("=")[1], gold):
            return "value of an equation"
    elif signs == (0, 1) and len(gold.split("=")[0].strip()) <= 2:  # noqa: SIM102
        if equal(pred, gold.split("=")[1]):
            return "value of an equation"
    return "same formula" if equal_formulas(pred, gold) else None


def last_choice(text: str) -> str:
    text = text.strip("\n").rstrip(".").rstrip("/").strip(" ").lstrip(":")
    letters = CHOICE.findall(text.upper())
    return (letters[-1] if letters else text.strip().strip(".")).rstrip(".").rstrip("/")


def as_number(text: str) -> float | None:
    text = text.replace(",", "")
    value = tolerant.as_float(text)
    if value is None and text.endswith("%"):
        value = tolerant.as_float(text[:-1].removesuffix("\\"))
        return None if value is None else value / 100
    return value


def set_as_matrix(text: str) -> str:
    """`{1,2}` as a column, for an answer that is one; "" for anything else."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or "," not in text[start:end]:
        return ""
    cells = text[start : end + 1].strip("{}").replace(",", "\\")
    return "\\begin{pmatrix}" + cells + "\\end{pmatrix}"


def is_list(text: str) -> bool:
    return re.match(r"[(\[].+[)\]]", text) is not None


def is_matrix(text: str) -> bool:
    return text.startswith("\\begin{pmatrix}") and text.endswith("\\end{pmatrix}")


def equal_items(pred: list[str], gold: list[str]) -> bool:
    if len(pred) != len(gold) or len(pred) > MAX_ITEMS:
        return False
    return all(equal(*pair) for pair in zip(pred, gold, strict=True))


def equal_cells(pred: str, gold: str) -> bool:
    rows = [
        [
            row.strip()
            for row in text[len("\\begin{pmatrix}") : -len("\\end{pmatrix}")].split("\\\\")
        ]
        for text in (pred, gold)
    ]
    first, second = ([row.split("&") for row in kept if row] for kept in rows)
    return len(first) == len(second) and all(map(equal_items, first, second))


def tolerant_sides(equation: str) -> str:
    left, right = equation.split("=")
    return f"{left.strip()} - ({right.strip()})"


# ── formulas ──

LISTS = re.compile(r"([(\[{])(.*)[)\]}]")


def equal_formulas(pred: str, gold: str) -> bool:
    """Whether two texts are one formula, or one list, as the original's readers take them."""
    pred, gold = pred.replace("\\\\", "\\"), gold.replace("\\\\", "\\")
    if pred == gold:
        return True
    first, second = (tolerant.read_first(text, READERS) for text in (pred, gold))
    if first is None or second is None:
        return first is second and equal_sequences(pred, gold)
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    relations = [isinstance(tree, latex_prefix.Relation) for tree in (first, second)]
    if all(relations):
        return first == second or tolerant.same_relation(first, second)
    if any(relations):
        return False
    return tolerant.same_value(first, second) or tolerant.close_trees(first, second)


def equal_sequences(pred: str, gold: str) -> bool:
    """Tuples, lists and sets in the syntax of programmers; sets in any order, all exact."""
    matches = LISTS.fullmatch(pred), LISTS.fullmatch(gold)
    if None in matches or matches[0][1] != matches[1][1]:
        return False
    try:
        first, second = ([plain_formula.read(t) for t in m[2].split(",")] for m in matches)
    except expression.Unreadable:
        return False
    if matches[0][1] == "{":
        first, second = (sorted(items, key=expression.canon) for items in (first, second))
    return len(first) == len(second) <= MAX_ITEMS and all(map(tolerant.same_value, first, second))


READERS = (latex_prefix.read, plain_formula.read)
