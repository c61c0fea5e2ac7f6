"""Streams: whatever the chunks, what was sent is a beginning of the final text."""

import random

import fakes
import pytest

from jaxmath.serve.text import TextStream

TEXT = "x² ≠ 3 · 𝔽₂, naïve 👩‍👩‍👧 – ok\nEND of it"


def cut_text(text, stops):
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def stream(ids, stops, rng, pieces=False):
    """(all that was released on the way, the stream) with chunks of random sizes."""
    out = TextStream(fakes.decode, stops, pieces)
    sent, kept, at = "", [], 0
    while at < len(ids):
        size = rng.randint(1, 7)
        new = ids[at : at + size]
        out.push(new, [fakes.logprob_of(t) for t in new])
        text, news = out.release()
        sent, kept, at = sent + text, kept + news, at + size
        yield sent, kept, out


@pytest.mark.parametrize(
    "stops", [(), ("END",), ("\n",), ("ok\nEN", "END"), ("nothing of it",), ("👧", "👩"), ("xx",)]
)
def test_what_is_sent_never_has_to_be_taken_back(stops):
    rng, ids, final = random.Random(0), fakes.encode(TEXT), cut_text(TEXT, stops)
    for _ in range(50):
        for sent, _, out in stream(ids, stops, rng):
            assert final.startswith(sent) and "\ufffd" not in sent
            last = sent, out
        sent, out = last
        rest, _ = out.finish(final)
        assert sent + rest == final


def test_a_character_is_sent_when_it_is_whole():
    out = TextStream(fakes.decode, ())
    found = []
    for byte in fakes.encode("a👩b"):
        out.push([byte], [0.0])
        found.append(out.release()[0])
    assert found == ["a", "", "", "", "👩", "b"]


def test_only_a_possible_beginning_of_a_stop_string_is_held_back():
    out = TextStream(fakes.decode, ("\n\nQ:", "###"))
    out.push(fakes.encode("one\n"), [0.0] * 4)
    assert out.release()[0] == "one"
    out.push(fakes.encode("two\n\nQ"), [0.0] * 6)
    assert out.release()[0] == "\ntwo"
    out.push(fakes.encode("uestion"), [0.0] * 7)
    assert out.release()[0] == "\n\nQuestion"
    out.push(fakes.encode("##"), [0.0] * 2)
    assert out.release()[0] == ""
    assert out.finish("one\ntwo\n\nQuestion##")[0] == "##"


def test_nothing_behind_a_stop_string_is_sent():
    out = TextStream(fakes.decode, ("b",))
    out.push(fakes.encode("aab and more"), [0.0] * 12)
    assert out.release()[0] == "aa"
    out.push(fakes.encode(" and more"), [0.0] * 9)
    assert out.release()[0] == ""
    assert out.finish("aa")[0] == ""


def test_bytes_that_are_no_text_come_at_the_end_or_with_the_next_character():
    out = TextStream(fakes.decode, ())
    out.push([0xFF, 0xFE], [0.0] * 2)
    assert out.release()[0] == ""
    out.push([ord("a"), 0xC3], [0.0] * 2)
    assert out.release()[0] == "\ufffd\ufffda"
    out.push([ord("b"), 0xC3], [0.0] * 2)
    assert out.release()[0] == "\ufffdb"
    assert out.finish("\ufffd\ufffda\ufffdb\ufffd")[0] == "\ufffd"


def test_special_tokens_are_no_text():
    out = TextStream(fakes.decode, ())
    out.push([ord("a"), fakes.EOS], [0.0] * 2)
    assert out.release()[0] == "a" and out.finish("a")[0] == ""


@pytest.mark.parametrize("stops", [(), ("END",)])
def test_pieces_are_the_tokens_in_order_and_make_up_the_text(stops):
    rng, ids, final = random.Random(1), fakes.encode(TEXT), cut_text(TEXT, stops)
    ids = ids[: len(fakes.encode(final)) + sum(map(len, stops))]
    for _ in range(20):
        for sent, pieces, out in stream(ids, stops, rng, pieces=True):
            assert (
                "".join(piece.text for piece in pieces) == sent[: sum(len(p.text) for p in pieces)]
            )
            last = pieces, out
        pieces, out = last
        pieces = pieces + out.finish(final)[1]
        assert [piece.logprob for piece in pieces] == [fakes.logprob_of(i) for i in ids]
        assert "".join(piece.text for piece in pieces) == final + "".join(stops)
        for piece in pieces:
            assert TEXT[piece.offset :].startswith(piece.text)


def test_the_last_piece_holds_half_a_character_of_a_cut_response():
    out = TextStream(fakes.decode, (), pieces=True)
    out.push([ord("a"), 0xC3], [-1.0, -2.0])
    text, pieces = out.release()
    rest, more = out.finish("a\ufffd")
    assert text + rest == "a\ufffd"
    assert [piece.text for piece in pieces + more] == ["a", "\ufffd"]


def test_a_long_response_is_not_decoded_anew_with_every_chunk():
    decoded = 0

    def decode(ids):
        nonlocal decoded
        decoded += len(ids)
        return fakes.decode(ids)

    out, ids = TextStream(decode, ("END",)), fakes.encode(TEXT) * 100
    for at in range(0, len(ids), 8):
        out.push(ids[at : at + 8], [0.0] * len(ids[at : at + 8]))
        out.release()
    assert decoded < 2 * len(ids)
