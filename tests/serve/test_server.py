"""A real server on loopback: streams arrive as they are made, and it goes as it should."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import fakes
import httpx2
import pytest

from jaxmath.serve import server


@pytest.fixture
def session():
    session = fakes.FakeSession()
    yield session
    session.gate.set()


def stream(client, **body):
    return client.stream("POST", "/v1/completions", json={"stream": True, **body})


def data_lines(response):
    return (line for line in response.iter_lines() if line)


def test_text_arrives_while_the_rest_is_still_being_made(session):
    session.chunk, step = 1, session.step

    def first_step():
        done, session.step = step(), step
        session.gate.clear()  # the second one has to wait
        return done

    session.step = first_step
    with fakes.live(fakes.service(session)) as (_, client), stream(client, prompt="hello") as found:
        lines = data_lines(found)
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"] == "H"
        assert session.busy  # it has not finished, and cannot
        session.gate.set()
        assert list(lines)[-1] == "data: [DONE]"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_goes_away_takes_its_requests_along(session, streaming):
    session.chunk, session.step_s = 1, 0.1
    session.answer = lambda request: fakes.encode("x" * 50)
    with fakes.live(fakes.service(session)) as (running, client):
        body = {"prompt": "a", "n": 3, "max_tokens": 50}
        if streaming:
            with stream(client, **body) as response:
                next(data_lines(response))
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/completions", json=body, timeout=0.1)
        worker = running._service.worker
        fakes.eventually(lambda: worker.num_waiting == 0 and not session.busy)
        assert sum(what == "cancel" for what, _ in session.log) == 3
        assert client.get("/health").status_code == 200


def test_running_responses_finish_while_new_ones_are_refused(session):
    session.gate.clear()
    found = {}
    with fakes.live(fakes.service(session)) as (running, client):

        def call():
            found["running"] = client.post("/v1/completions", json={"prompt": "a"})

        thread = threading.Thread(target=call)
        thread.start()
        fakes.eventually(lambda: session.running)
        running.handle_exit(signal.SIGTERM, None)
        refused = httpx2.post(f"{client.base_url}/v1/completions", json={"prompt": "b"})
        assert refused.status_code == 503
        assert httpx2.get(f"{client.base_url}/health").status_code == 503
        session.gate.set()
        thread.join(60)
        assert found["running"].status_code == 200
        fakes.eventually(lambda: running.should_exit)


@pytest.mark.parametrize("how", ["grace", "second signal"])
def test_what_is_not_done_in_time_is_told_so(session, how):
    session.gate.clear()
    found = []
    grace_s = 0.2 if how == "grace" else 100
    with fakes.live(fakes.service(session), grace_s) as (running, client):
        call = lambda: found.append(client.post("/v1/completions", json={"prompt": "a"}))  # noqa: E731
        thread = threading.Thread(target=call)
        thread.start()
        fakes.eventually(lambda: session.running)
        running.handle_exit(signal.SIGTERM, None)
        if how == "second signal":
            running.handle_exit(signal.SIGTERM, None)
        thread.join(25)  # though the decoder still hangs in its step
        assert found[0].status_code == 503 and found[0].json()["error"]["type"] == "server_error"
        session.gate.set()


def test_many_clients_at_once(session):
    session.chunk = 4
    with fakes.live(fakes.service(session, max_waiting=1000)) as (_, client):
        wrong = []

        def call(number):
            for i in range(5):
                body = {"prompt": f"{number}-{i}", "max_tokens": 50}
                text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
                if not text.startswith(f"{number}-{i} #"):
                    wrong.append(text)

        threads = [threading.Thread(target=call, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong


def test_a_header_that_says_nothing_true_of_the_body_does_no_harm(session):
    with fakes.live(fakes.service(session)) as (_, client):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n{"
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 413")
        assert client.get("/health").status_code == 200


def test_a_port_in_use_is_an_error_in_words():
    with (
        server.bind("127.0.0.1", 0) as taken,
        pytest.raises(ValueError, match="cannot listen on 127.0.0.1 port"),
    ):
        server.bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ValueError, match="cannot listen on host.invalid"):
        server.bind("host.invalid", 0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "192.168.0.1", "example.com", "")],
)
def test_loopback_is_told_from_the_rest(host, expected):
    assert server.is_loopback(host) is expected


SCRIPT = """
import sys, fakes
from jaxmath.serve import server
session = fakes.FakeSession(chunk=1, step_s=0.2)
listening = server.bind("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
server.Server(fakes.service(session), 10.0).run([listening])
print("served", flush=True)
"""


def test_a_signal_ends_the_process_in_order():
    paths = [os.path.dirname(fakes.__file__), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    with (
        httpx2.Client(base_url=url, timeout=60) as client,
        stream(client, prompt="hello", max_tokens=16) as response,
    ):
        assert response.status_code == 200
        lines = data_lines(response)
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert client.post("/v1/completions", json={"prompt": "b"}).status_code == 503
        assert list(lines)[-1] == "data: [DONE]"
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "served\n", errors
