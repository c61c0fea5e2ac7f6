"""Answers in words: text, numbers written out, letters of a multiple choice."""

import re

from jaxmath.verify import tokens

TEXT = re.compile(r"\\text\{([^{}]*)\}")
PUNCTUATION = re.compile(r"[\s.,!?\"'`*_()-]+")
SHORT_WORDS = "yes no odd even red one two six ten may man men day sun mon"
PLAIN_WORDS = frozenset(SHORT_WORDS.split())
DIGIT = re.compile(r"\d")


def in_words(text: str) -> str | None:
    """A canonical text that is words, perhaps with numbers among them, in one case; None if there
    is anything else in it.

    Capitals of short runs are kept: `AB` may be a segment, and `ab` a product."""
    text = TEXT.sub(r" \1 ", text)
    text = text[1:-1] if text[:1] == "{" and text[-1:] == "}" else text
    if DIGIT.search(text) and ("-" in text or "_" in text or "." in text or "(" in text):
        return None
    words = PUNCTUATION.sub(" ", text).split()
    if not words or not all(w.isalpha() or w.isdecimal() for w in words):
        return None
    if not any(is_word(w) for w in words):
        return " ".join(words) if all(w.isalpha() for w in words) else None
    return " ".join(words).casefold()


def is_word(run: str) -> bool:
    """Whether a run of letters is a word of prose: a product of variables is shorter, and has no
    capital only in front."""
    if run.casefold() in PLAIN_WORDS or not run.isascii():
        return run.isalpha()
    return run.isalpha() and (
        len(run) > 3 or (len(run) > 2 and run[1:].islower() and run[0].isupper())
    )


def is_prose(text: str) -> bool:
    """Whether a text is nothing but words of prose."""
    runs = text.split()
    return all(run.isalpha() for run in runs) and any(
        is_word(run) and run.lower() not in tokens.PLAIN_NAMES for run in runs
    )


UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
UNITS += " fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMERALS = {word: n for n, word in enumerate(UNITS.split())}
NUMERALS |= {word: 10 * n for n, word in enumerate(TENS.split(), start=2)}
NUMERALS |= {
    f"{tens} {unit}": NUMERALS[tens] + NUMERALS[unit]
    for tens in TENS.split()
    for unit in UNITS.split()[1:10]
}
NUMERALS |= {"one hundred": 100, "one thousand": 1000, "one million": 10**6}


def numeral(words: str | None) -> str | None:
    """The digits of a number written out, `twelve` as 12."""
    return str(NUMERALS[words]) if words in NUMERALS else None


LETTER = re.compile(r"\(?\s?([A-Z])\s?\)?\.?")
# `\text{(A) }5` has lost its space by now, but a colon without one is a ratio
LABELLED = re.compile(r"(?:\(([A-Z])\)|([A-Z])(?:[.)]|:(?!\S)))\s*(\S.*)?", re.DOTALL)
ANNOUNCED = re.compile(r"(?:option|choice|answer|选项?|故选)\s?:?\s?(?-i:(?![a-z]))", re.IGNORECASE)
ANOTHER_LETTER = re.compile(r"\([A-Z]\)|(?<![\w\\])(?:and|or|\\and|\\or)(?!\w)|^[A-Z][.:)]?$")


def choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: `B`, `(B)`, `option B`, or `(B) some text`, but not
    one of several."""
    text = TEXT.sub(r"\1", text).strip()
    announced = ANNOUNCED.match(text)
    text = text[announced.end() :] if announced else text
    letter = LETTER.fullmatch(text)
    if letter:
        return letter[1]
    label = LABELLED.fullmatch(text)
    if not label or (label[3] and (ANOTHER_LETTER.search(label[3]) or label[3][0] in ",;&/+-=")):
        return None
    return label[1] or label[2]


RUN_OF_LETTERS = re.compile(r"[A-Z]{2,8}")
LIST_OF_LETTERS = re.compile(r"\(?([A-H])\)?(?:(?:\s?(?:[,;&]|\\and)\s?|\s)?\(?([A-H])\)?)*")
LETTERS = re.compile(r"[A-H]")


def same_letters(first: str, second: str) -> bool:
    """`ABD` and `A, B, D`: the several letters of one multiple choice, or an order of letters."""
    for run, listed in ((first, second), (second, first)):
        run, listed = (TEXT.sub(r"\1", text).strip() for text in (run, listed))
        if not RUN_OF_LETTERS.fullmatch(run) or RUN_OF_LETTERS.fullmatch(listed):
            continue
        if LIST_OF_LETTERS.fullmatch(listed):
            letters = LETTERS.findall(listed)
            is_choice = list(run) == sorted(set(run))
            return "".join(sorted(letters) if is_choice else letters) == run
    return False
