"""A session without a model, a codec of bytes, and a real server around them on a free port."""

import contextlib
import threading
import time

import httpx2
import numpy as np

from jaxmath.decode.requests import Completion, Update
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.serve import app, protocol, server, worker

EOS = 256  # ids below it are bytes
VOCAB_SIZE = 300


def encode(text):
    return list(text.encode())


def encode_chat(messages):
    if messages[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's own")
    return encode("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>")


def decode(ids):
    return bytes(i for i in ids if i < EOS).decode(errors="replace")


CODEC = protocol.Codec(encode, encode_chat, decode)


def limits(**changes):
    fields = {
        "model": "tiny",
        "max_prompt_tokens": 64,
        "vocab_size": VOCAB_SIZE,
        "max_choices": 8,
        "defaults": SamplingConfig(max_tokens=50),
    }
    return protocol.Limits(**(fields | changes))


def answer_ids(request):
    """Says its prompt back, in capitals, and what sample it is."""
    text = decode(request.tokens).upper() + f" #{request.sample % 1000}"
    return [*encode(text), EOS]


def logprob_of(token):
    return -token / 100


class FakeSession:
    """Answers all requests at once, `chunk` tokens a step.

    answer: request → response ids; decode, eos: of those ids.
    gate: cleared, it holds every step until it is set again. log: what was asked of the session.
    fails: raised by the next step.
    """

    def __init__(self, answer=answer_ids, chunk=3, step_s=0.0, decode=decode, eos=EOS):
        self.answer, self.chunk, self.step_s = answer, chunk, step_s
        self.decode, self.eos = decode, eos
        self.running = {}
        self.gate = threading.Event()
        self.gate.set()
        self.log = []
        self.fails = None
        self.num_steps = 0
        self.threads = set()

    @property
    def busy(self):
        return bool(self.running)

    def submit(self, request, on_update=None):
        self.threads.add(threading.current_thread().name)
        assert request.name not in self.running
        if request.tokens[0] == 255:
            raise ValueError("no prompt may begin with 255")
        self.log.append(("submit", request))
        self.running[request.name] = (request, on_update, self.answer(request), 0)

    def cancel(self, prompt_id, sample):
        self.threads.add(threading.current_thread().name)
        self.log.append(("cancel", (prompt_id, sample)))
        self.running.pop((prompt_id, sample), None)

    def step(self):
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(30)
        time.sleep(self.step_s)
        if self.fails is not None:
            raise self.fails
        self.num_steps += 1
        done = []
        for name, (request, on_update, ids, at) in list(self.running.items()):
            options = request.options
            allowed = ids[: options.max_tokens]
            new = allowed[at : at + self.chunk]
            so_far = allowed[: at + len(new)]
            cut, text = self._cut(so_far, at, options.stop)
            tokens = so_far[:cut]
            if on_update is not None:
                on_update(Update(*name, tuple(tokens[at:]), logprobs(tokens[at:])))
            if len(tokens) < len(allowed) and cut is None:
                self.running[name] = (request, on_update, ids, len(so_far))
                continue
            del self.running[name]
            reason = "stop" if cut is not None or tokens[-1] == self.eos else "length"
            done.append(Completion(*name, tuple(tokens), logprobs(tokens), reason, text))
        return done

    def _cut(self, ids, first, stops):
        for end in range(first + 1, len(ids) + 1):
            text = self.decode(ids[:end])
            places = [text.find(stop) for stop in stops if stop in text]
            if places:
                return end, text[: min(places)]
        return None, self.decode(ids)


def logprobs(tokens):
    return np.asarray([logprob_of(t) for t in tokens], np.float32)


def service(session=None, max_waiting=100, **changes):
    session = session or FakeSession()
    fields = {
        "worker": worker.Worker(lambda: session, max_waiting),
        "limits": limits(),
        "codec": CODEC,
        "max_body_bytes": 20_000,
    }
    return app.Service(**(fields | changes))


@contextlib.contextmanager
def live(service, grace_s=10.0):
    """A server of it on a free port: (Server, client)."""
    listening = server.bind("127.0.0.1", 0)
    running = server.Server(service, grace_s)
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx2.Client(base_url=url, timeout=120) as client:
            eventually(lambda: running.started)
            yield running, client
    finally:
        running.drain(0.0)
        thread.join(30)
        assert not thread.is_alive()


def eventually(condition, timeout_s=60.0):
    """Waits until it is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.01)
