"""Tokens as they come → text that will not change any more, for streams.

Two things can still change the end of a text: a character may be half there, and what looks like
ordinary text may turn out to be the beginning of a stop string. Both are held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

UNFINISHED = "\ufffd"  # what half a character decodes to


class Piece(NamedTuple):
    """A token's share of the text; "" for one that ends in the middle of a character.

    offset: of its first character in the response.
    """

    text: str
    offset: int
    logprob: float


class TextStream:
    """The text of one response.

    Args:
      decode: ids → text. Of byte-level tokens, as Qwen2's are: ids that begin on a whole character
        can be decoded without those before them.
      stop: strings before which the response ends.
      pieces: keep one `Piece` per token, which costs a call of `decode` for each.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...], pieces: bool = False
    ):
        self._decode, self._stop = decode, stop
        self._window: list[int] = []  # ids behind the last whole character, and their text so far
        self._taken = 0
        self._unsent = ""
        self._num_sent = 0
        self._num_known = 0  # characters that will not change, sent or not
        self._pieces: list[Piece] | None = [] if pieces else None
        self.num_tokens = 0

    def push(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Takes the next tokens of the response."""
        if self._pieces is None:
            self._extend(tokens)
            return
        for token, logprob in zip(tokens, logprobs, strict=True):
            offset = self._num_known
            text = self._extend([token])
            self._pieces.append(Piece(text, offset, float(logprob)))

    def _extend(self, tokens: Sequence[int]) -> str:
        """The text that these tokens settle."""
        self.num_tokens += len(tokens)
        self._window += tokens
        text = self._decode(self._window)
        settled = text.rstrip(UNFINISHED)
        new = settled[self._taken :]
        self._taken = max(self._taken, len(settled))
        if settled == text:
            self._window, self._taken = [], 0
        self._unsent += new
        self._num_known += len(new)
        return new

    def release(self) -> tuple[str, list[Piece]]:
        """What can be sent now: text, and the pieces that lie within all text sent so far."""
        end = min((at for s in self._stop if (at := self._unsent.find(s)) >= 0), default=None)
        if end is None:
            end = len(self._unsent) - _longest_beginning(self._unsent, self._stop)
        out, self._unsent = self._unsent[:end], self._unsent[end:]
        self._num_sent += len(out)
        num_pieces = 0
        for piece in self._pieces or ():
            if piece.offset + len(piece.text) > self._num_sent:
                break
            num_pieces += 1
        while num_pieces and not self._pieces[num_pieces - 1].text:
            num_pieces -= 1  # perhaps the beginning of a character
        return out, self._take_pieces(num_pieces)

    def finish(self, text: str) -> tuple[str, list[Piece]]:
        """The rest of a response whose whole text, cut before its stop string, is `text`."""
        rest = text[self._num_sent :]
        self._num_sent = len(text)
        if self._pieces and len(text) > self._num_known:  # ends on half a character
            last = self._pieces[-1]
            self._pieces[-1] = last._replace(text=text[last.offset :])
        return rest, self._take_pieces(len(self._pieces or ()))

    def _take_pieces(self, count: int) -> list[Piece]:
        if self._pieces is None:
            return []
        out, self._pieces = self._pieces[:count], self._pieces[count:]
        return out


def _longest_beginning(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
