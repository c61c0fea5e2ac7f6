"""Unicode mathematics as LaTeX or ASCII.

Controls, zero-width and bidirectional marks go; what remains means what it looked like.
"""

import re
import unicodedata

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx", strict=True))

SYMBOLS = {
    **dict.fromkeys("−–—‐‑‒―﹣－˗➖", "-"),
    **dict.fromkeys("×✕✖⨯", r" \times "),
    **dict.fromkeys("·⋅∙•・", r" \cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("≤⩽≦", r" \le "),
    **dict.fromkeys("≥⩾≧", r" \ge "),
    **dict.fromkeys("≈≃≅", r" \approx "),
    **dict.fromkeys("°˚º", r"\degree "),
    **dict.fromkeys("～〜∼", r" \sim "),
    **dict.fromkeys("\u2800\u3164\u115f\u1160\uffa0", " "),  # letters that look like nothing
    **dict.fromkeys("′’ʹ＇", "'"),
    **dict.fromkeys("，、﹐", ","),
    **dict.fromkeys("∅⌀Ø", r"\emptyset "),
    "∗": "*", "√": r"\sqrt ", "∛": r"\cbrt ", "∞": r"\infty ", "≠": r" \ne ", "∪": r" \cup ",
    "∩": r" \cap ", "∈": r" \in ", "±": r" \pm ", "∓": r" \mp ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "∠": r"\angle ", "△": r"\triangle ", "∶": ":", "。": ".", "；": ";", "…": r"\ldots ",
    "∘": r"\circ ", "∆": r"\Delta ", "∜": r"\sqrt[4]", "≡": r" \equiv ",
    "∥": r"\parallel ", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∑": r"\sum ", "∫": r"\int ", "∧": r"\text{ and }",
    "∨": r"\text{ or }", "⇒": r"\implies ", "→": r"\to ", "∖": r"\setminus ",
}  # fmt: skip
GREEK = {
    chr(code): "\\"
    + unicodedata.name(chr(code)).split()[-1].lower().replace("lamda", "lambda")
    + " "
    for code in range(0x3B1, 0x3CA)
    if code not in (0x3BF, 0x3C2)  # omicron looks like o; final sigma is no symbol
} | {
    "Δ": r"\Delta ",
    "Ω": r"\Omega ",
    "Σ": r"\Sigma ",
    "Π": r"\Pi ",
    "Φ": r"\Phi ",
    "Θ": r"\Theta ",
    "ϕ": r"\phi ",
}
TRANSLATION = str.maketrans(SYMBOLS | GREEK)
VULGAR = re.compile("[¼-¾⅐-⅞]")
CIRCLED = re.compile("[①-⑳]")
RAISED = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
LOWERED = re.compile(f"[{''.join(SUBSCRIPTS)}]+")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
GROUP_SPACE = re.compile(
    "(?<=[0-9０-９])[\u00a0\u2006-\u2009\u202f](?=[0-9０-９]{3}(?![0-9０-９]))"
)
UNSEEN = frozenset({"Cf", "Cs"})


def characters(text: str) -> str:
    """A text in ASCII and letters; controls become spaces, marks that cannot be seen go."""
    text = CONTROLS.sub(" ", text)
    if text.isascii():
        return text
    text = GROUP_SPACE.sub("", text)
    text = "".join(c for c in text if unicodedata.category(c) not in UNSEEN and not is_selector(c))
    text = RAISED.sub(lambda m: raised("^", m[0], SUPERSCRIPTS), text)
    text = LOWERED.sub(lambda m: raised("_", m[0], SUBSCRIPTS), text)
    text = VULGAR.sub(lambda m: vulgar_fraction(m[0]), text)
    text = CIRCLED.sub(lambda m: rf"\textcircled{{{ord(m[0]) - ord('①') + 1}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(TRANSLATION)).translate(TRANSLATION)
    return "".join(c if c.isascii() or not c.isdecimal() else str(int(c)) for c in text)


def is_selector(character: str) -> bool:
    """Whether a character only picks the look of the one before it."""
    return "\ufe00" <= character <= "\ufe0f"


def raised(command: str, run: str, table: dict[str, str]) -> str:
    return command + "{" + "".join(table[c] for c in run) + "}"


def vulgar_fraction(character: str) -> str:
    """½ as \\frac{1}{2}."""
    numerator, denominator = unicodedata.normalize("NFKC", character).split("\N{FRACTION SLASH}")
    return rf"\frac{{{numerator}}}{{{denominator}}}"
