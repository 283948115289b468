"""Step-by-step record of a decoding, for the first `trace.samples` samples of a setting."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract

ACTIONS = ("reveal", "write", "remask")


class Traces(Contract):
    """One changed position a row, with the model's probability of the new token."""

    table: ClassVar[str] = "traces"

    sample_id = dy.String()
    setting = dy.String()
    step = dy.Int32(min=0)
    position = dy.Int32(min=0, description="index within the response")
    old = dy.Int32()
    new = dy.Int32()
    action = dy.Enum(ACTIONS)
    confidence = dy.Float32(description="softmax probability of `new` when it was written")
