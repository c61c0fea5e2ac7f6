"""Brackets in canonical text: parts between separators outside all of them, and what a pair of them
encloses.

Round and square brackets may close each other, as in `[0, 1)`.
"""

import re

OPEN, CLOSE = "([{", ")]}"
COMMAND = re.compile(r"\\[A-Za-z]+|\\.", re.DOTALL)
BEGIN_END = re.compile(r"\\(begin|end)\s*\{")


def split(text: str, separators: re.Pattern) -> tuple[list[str], list[str]]:
    """The parts between separators outside all brackets, and the separators; one part if there are
    none."""
    parts, found, depth, start, position = [], [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            environment = BEGIN_END.match(text, position)
            if environment:
                depth += 1 if environment[1] == "begin" else -1
                position = environment.end() - 1
                closing = text.find("}", position)
                position = len(text) if closing < 0 else closing + 1
                continue
            if text[position + 1 : position + 2] in ("{", "}"):
                depth += 1 if text[position + 1] == "{" else -1
                position += 2
                continue
        match = separators.match(text, position) if depth == 0 else None
        if match:
            parts.append(text[start:position])
            found.append(match[0].strip())
            start = position = match.end()
            continue
        if character == "\\":
            command = COMMAND.match(text, position)
            position = command.end() if command else position + 1
            continue
        depth += (character in OPEN) - (character in CLOSE)
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts], found


def inside(text: str) -> tuple[str, str, str] | None:
    """(opener, content, closer) if the first bracket of a text closes at its last character."""
    opener = text[:2] if text[:2] == "\\{" else text[:1]
    if opener not in ("(", "[", "{", "\\{"):
        return None
    depth, position = 0, 0
    while position < len(text):
        character = text[position]
        width = 1
        if character == "\\":
            width = 2
            following = text[position + 1 : position + 2]
            depth += (following == "{") - (following == "}")
        else:
            depth += (character in OPEN) - (character in CLOSE)
        if depth == 0:
            if position + width != len(text):
                return None
            closer = text[position:]
            if (opener == "\\{") != (closer == "\\}") or (opener == "{") != (closer == "}"):
                return None
            return opener, text[len(opener) : position].strip(), closer
        position += width
    return None
