"""What a line of a batch's output means: an outcome, or that its request is to be sent again."""

import json
from collections.abc import Mapping
from typing import Any

import httpx2
import openai
from openai.types import Batch as RemoteBatch

from core.errors import ExpertUnavailable
from core.expert.batch_file import URL, Result
from core.expert.batch_store import Batch
from core.expert.ledger import Reply
from core.expert.outcome import failure, judged
from core.expert.request import ExpertRequest
from core.expert.settings import ExpertSettings
from core.expert.transport import RequestFault, Transport, is_retryable

_NOT_EXECUTED = {"expired": "batch_expired", "cancelled": "batch_cancelled"}


class BatchJudge:
    """Judges as is done online: the same errors, the same dialect, the same breaker.

    broken: why the endpoint as a whole is of no use, once a line has shown it.
    """

    def __init__(self, settings: ExpertSettings, requests: Mapping[str, ExpertRequest], transport: Transport) -> None:
        self.broken: ExpertUnavailable | None = None
        self._settings = settings
        self._requests = requests
        self._transport = transport
        self._faults_in_a_row = 0

    def outcome(self, result: Result, batch: Batch, seen: RemoteBatch) -> Reply | None:
        """What came of one of the batch's requests; None: it is to be sent again."""
        request, attempt = self._requests[result.custom_id], batch.lines[result.custom_id].attempt
        if result.response is None:
            return self._not_executed(result, seen, attempt)
        status, body = result.response.status_code, result.response.body
        try:
            if status == 200:
                completion = self._transport.read(json.dumps(body), latency_s=_seconds(seen), attempts=attempt)
                self._faults_in_a_row, self._transport.dialects.is_known = 0, True
                return judged(self._settings, request, completion)
            error = self._refusal(status, body)
            may_try = is_retryable(error) and attempt < self._settings.max_attempts
            if self._transport.dialects.learn(batch.dialect, error) or may_try:
                return None
            raise self._transport.explain(error, attempt)
        except RequestFault as fault:
            return self._fault(request, fault)
        except ExpertUnavailable as fault:
            self.broken = fault
            return failure(self._settings, request, str(fault), attempt)

    def _refusal(self, status: int, body: Any) -> openai.APIStatusError:
        """The error that there would have been if the request had been sent alone."""
        response = httpx2.Response(status, request=httpx2.Request("POST", f"{self._transport.address}{URL}"))
        about = body.get("error", body) if isinstance(body, dict) else body
        return openai.APIStatusError(f"Error code: {status} - {body}", response=response, body=about)

    def _not_executed(self, result: Result, seen: RemoteBatch, attempt: int) -> Reply | None:
        if attempt < self._settings.max_attempts:
            return None
        about = result.error
        code = (about and about.code) or _NOT_EXECUTED.get(seen.status, "missing")
        said = (about and about.message) or f"no answer in batch {seen.id}"
        return self._fault(self._requests[result.custom_id], RequestFault(code, self._transport.redact(said), attempt))

    def _fault(self, request: ExpertRequest, fault: RequestFault) -> Reply:
        self._faults_in_a_row += 1
        if self._faults_in_a_row >= self._settings.breaker:
            self.broken = ExpertUnavailable(
                f"the expert at {self._transport.address} failed {self._faults_in_a_row} requests in a row, "
                f"the last with {fault}. What it answered so far is kept: run again when it is well"
            )
        return failure(self._settings, request, str(fault), fault.attempts)


def _seconds(seen: RemoteBatch) -> float:
    """From handing the batch in to its end, by the endpoint's clock."""
    ended = seen.completed_at or seen.expired_at or seen.cancelled_at or seen.created_at
    return float(max(0, ended - seen.created_at))
