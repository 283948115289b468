"""An endpoint that only waits: as little as can be done for a chat completion, so that the client is what is measured.

python -m tests.benchmarks.slow_expert     prints its port, and ends with its standard input

The path says how it behaves: http://127.0.0.1:PORT/CASE/RUN/v1. Each CASE is one of `BEHAVIOURS`; each RUN meets the
same latencies and faults, in the order in which its requests arrive.
"""

import asyncio
import json
import math
import random
import statistics
import sys
from dataclasses import dataclass

_PERIOD = 2000  # requests after which latencies and faults repeat


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Latencies are log-normal around the median `latency_s` with this p99, or all the same. Shares are of all."""

    latency_s: float = 0.2
    p99_s: float | None = None
    share_429: float = 0.0
    share_malformed: float = 0.0

    def latencies(self) -> list[float]:
        """The latencies of a period: evenly spaced quantiles in a random order, one without the longest at the end."""
        if self.p99_s is None:
            return [self.latency_s] * _PERIOD
        normal = statistics.NormalDist()
        sigma = math.log(self.p99_s / self.latency_s) / normal.inv_cdf(0.99)
        drawn = [self.latency_s * math.exp(sigma * normal.inv_cdf((i + 0.5) / _PERIOD)) for i in range(_PERIOD)]
        random.Random(54).shuffle(drawn)
        return drawn

    def faults(self) -> list[str]:
        """429, malformed or nothing, for each request of a period."""
        counts = {"429": round(self.share_429 * _PERIOD), "malformed": round(self.share_malformed * _PERIOD)}
        drawn = [fault for fault, count in counts.items() for _ in range(count)]
        drawn += [""] * (_PERIOD - len(drawn))
        random.Random(1).shuffle(drawn)
        return drawn


BEHAVIOURS = {
    "steady": Behaviour(),
    "long_tail": Behaviour(p99_s=2.0),
    "faulty": Behaviour(share_429=0.05, share_malformed=0.01),
    "quick": Behaviour(latency_s=0.02),
}


def _response(status: str, body: object, headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def _completion(content: str) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": None}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "reference",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 20, "total_tokens": 420},
    }
    return _response("200 OK", body)


_RESPONSES = {
    "": _completion('{"segments": [{"org": "blue", "target": "red"}]}'),
    "malformed": _completion("I am sorry, I cannot say that as JSON"),
    "429": _response(
        "429 Too Many Requests", {"error": {"message": "slow down", "code": "rate"}}, "Retry-After: 1\r\n"
    ),
}
_LATENCIES = {case: behaviour.latencies() for case, behaviour in BEHAVIOURS.items()}
_FAULTS = {case: behaviour.faults() for case, behaviour in BEHAVIOURS.items()}
_seen: dict[bytes, int] = {}


class _Connection(asyncio.BufferedProtocol):
    """One keep-alive connection. The body is counted, not kept."""

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 20)
        self._head = b""
        self._missing = 0
        self._path: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._path is None:
            self._head += self._buffer[:nbytes]
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._head[:end].lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._path = self._head.partition(b" ")[2].partition(b" ")[0]
            self._missing = int(length) - (len(self._head) - end - 4)
            self._head = b""
        else:
            self._missing -= nbytes
        if self._missing <= 0:
            self._answer(self._path)
            self._path = None

    def _answer(self, path: bytes) -> None:
        run = path.partition(b"/v1")[0]
        place = _seen.get(run, 0)
        _seen[run] = place + 1
        case = run.split(b"/")[1].decode()
        fault = _FAULTS[case][place % _PERIOD]
        latency_s = 0.0 if fault == "429" else _LATENCIES[case][place % _PERIOD]
        asyncio.get_running_loop().call_later(latency_s, self._write, _RESPONSES[fault])

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started this is gone


if __name__ == "__main__":
    asyncio.run(_serve())
