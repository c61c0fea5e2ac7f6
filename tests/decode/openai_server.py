"""An OpenAI-compatible server that answers with what it was asked, or goes wrong as told."""

import collections
import contextlib
import http.server
import json
import threading
import time


class FakeServer(http.server.ThreadingHTTPServer):
    """Answers "<prompt>/<seed>". `faults(number)` says how the n-th request goes wrong, or None."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, faults=lambda number: None, takes_ids=True, delay_s=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.takes_ids, self.delay_s = faults, takes_ids, delay_s
        self.lock = threading.Lock()
        self.bodies, self.headers, self.times = [], [], []
        self.answered = collections.Counter()
        self.at_once = self.most_at_once = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append(self.headers)
            server.times.append(time.monotonic())
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        fault = server.faults(number)
        time.sleep(1.0 if fault == "slow" else server.delay_s)
        with server.lock:
            server.at_once -= 1  # before the client knows, which may ask again at once
        self.answer(server, body, fault)

    def answer(self, server, body, fault):
        assert self.path == "/v1/completions"
        if fault == "drop":
            self.connection.close()
            self.close_connection = True
            return None
        if isinstance(fault, tuple):
            return self.send(*fault)
        if not server.takes_ids and not isinstance(body["prompt"], str):
            return self.send(422, {"error": {"message": "prompt: expected text"}})
        text = f"{body['prompt']}/{body['seed']}"
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        if body.get("logprobs") == 0:
            choice["logprobs"] = {"token_logprobs": [-0.5, -0.25]}
        with server.lock:
            server.answered[text] += 1
        return self.send(200, {"choices": [choice], "usage": {"completion_tokens": len(text)}})

    def send(self, status, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)


@contextlib.contextmanager
def serving(*args, make=FakeServer, **kwargs):
    with make(*args, **kwargs) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
