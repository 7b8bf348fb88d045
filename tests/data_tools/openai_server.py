"""A local server that speaks the OpenAI protocol, with faults on demand."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A reply is a text (a good answer) or a dict: text, finish_reason, status, headers, raw (bytes sent as they are),
# sleep_seconds, break_off (the connection ends in mid-body), endless (bytes sent again and again, without a length;
# with pause_seconds between).
Reply = str | dict[str, Any]


MAX_ENDLESS_BYTES = 200 << 20


class FakeServer:
    """``answer(body, attempt)`` decides: ``body`` is the request, ``attempt`` how often this very content came."""

    def __init__(self, answer: Callable[[dict, int], Reply]) -> None:
        self.answer, self.requests, self.headers = answer, [], []
        self.in_flight = self.most_in_flight = self.bytes_sent = 0
        self._lock, self._seen = threading.Lock(), Counter()

    def __enter__(self) -> FakeServer:
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def enter(self, body: dict, headers: dict) -> int:
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.requests.append(body)
            self.headers.append(headers)
            content = json.dumps(body["messages"])
            self._seen[content] += 1
            return self._seen[content]

    def leave(self) -> None:
        with self._lock:
            self.in_flight -= 1


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        attempt = self.fake.enter(body, {name.title(): value for name, value in self.headers.items()})
        try:
            reply = self.fake.answer(body, attempt) if self.path == "/v1/chat/completions" else {"status": 404}
            self._send({"text": reply} if isinstance(reply, str) else reply, body.get("stream", False))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up waiting, which some tests want
        finally:
            self.fake.leave()

    def _send(self, reply: dict[str, Any], stream: bool) -> None:
        time.sleep(reply.get("sleep_seconds", 0))
        status = reply.get("status", 200)
        text, finish = reply.get("text", ""), reply.get("finish_reason", "stop")
        if "raw" in reply:
            payload = reply["raw"]
        elif status != 200:
            payload = b'{"error": {"message": "asked for by the test"}}'
        elif stream:
            events = [{"choices": [{"delta": {"content": character}}]} for character in text]
            events += [{"choices": [{"delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": _usage(text)}]
            lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
            payload = "".join([": alive\n\n", *lines, "data: [DONE]\n\n"]).encode()
        else:
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
            payload = json.dumps({"choices": [choice], "usage": _usage(text)}, ensure_ascii=False).encode()
        self.send_response(status)
        for name, value in reply.get("headers", {}).items():
            self.send_header(name, value)
        if "endless" in reply:
            self._send_without_end(reply["endless"], reply.get("pause_seconds", 0))
            return
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if reply.get("break_off"):
            payload = payload[: len(payload) // 2]
            self.close_connection = True
        self.wfile.write(payload)

    def _send_without_end(self, data: bytes, pause_seconds: float) -> None:
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while self.fake.bytes_sent < MAX_ENDLESS_BYTES:  # a client without a bound ends here, and its test fails
            self.wfile.write(data)
            self.fake.bytes_sent += len(data)
            time.sleep(pause_seconds)

    def log_message(self, *arguments: object) -> None:
        """Quiet: the tests count requests themselves."""


def _usage(text: str) -> dict[str, int]:
    return {"total_tokens": 10 + len(text)}


def question_of(body: dict) -> str:
    """The text of a request's last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]
