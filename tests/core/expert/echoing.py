"""An endpoint that repeats the key that it was given, in every spelling; and a search for any of them."""

import base64
import html
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager


def spellings(key: str) -> dict[str, str]:
    return {
        "as it is": key,
        "JSON": json.dumps(key)[1:-1],
        "repr": repr({"key": key})[9:-2],
        "HTML": html.escape(key),
        "URL": urllib.parse.quote(key, safe=""),
        "base64": base64.b64encode(key.encode()).decode(),
        "base64 of the header": base64.b64encode(f"Bearer {key}".encode()).decode(),
        "base64 of a user's password": base64.b64encode(f":{key}".encode()).decode(),
    }


def leaks(key: str, data: bytes) -> list[str]:
    """The spellings of the key that `data` holds; of base64 the part that does not depend on what stands around."""
    parts = {
        name: text[12:-4] if "base64 of" in name else text.rstrip("=")[:-1] for name, text in spellings(key).items()
    }
    return [name for name, part in parts.items() if part.encode() in data]


@contextmanager
def echoing_endpoint(key: str, status: int, where: str) -> Iterator[str]:
    """A server that answers everything with `status`, and with every spelling of the key in one place.

    where: message, page (no JSON), content, refusal or reason.
    """
    text = " | ".join(spellings(key).values())
    message = {"content": text if where == "content" else None, "refusal": text if where == "refusal" else None}
    choice = {"message": message, "finish_reason": text if where == "reason" else "stop"}
    error = {"message": text if where == "message" else "no", "param": text, "code": "x", "type": text}
    body: object = {"choices": [choice]} if status == 200 and where != "message" else {"error": error}
    page = f"<html>{text}</html>" if where == "page" else json.dumps(body)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Authorization"] == f"Bearer {key}"
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if where == "page" else "application/json")
            self.send_header("Content-Length", str(len(page.encode())))
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
