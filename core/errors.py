"""Everything that Redraft raises on purpose.

RedraftError
├── FatalError              the stage stops
│   ├── ConfigError         a setting is unknown, malformed or contradicts another
│   ├── InputError          the user's data, image folder or checkpoint cannot be used at all
│   ├── StoreError          a read or write of the store failed (disk full, bucket unreachable)
│   │   └── CorruptPart     a part does not have the sha256 that its manifest promises
│   ├── EmptyOutput         a stage ended without a single good row
│   ├── AccountingError     rows in != ok + rejected + failed: a row was lost
│   ├── ClaimLost           another process took this work over
│   ├── Interrupted         an orderly stop: what is done is kept, and the work can be gone on with
│   │   ├── ExpertUnavailable   the expert endpoint refuses, or failed too often in a row
│   │   ├── BudgetExceeded      a hard limit on cost, tokens, requests or time was reached
│   │   └── PartialFailure      some shards of a stage failed
│   └── ServerError         a Prefect or MLflow server could not be started or reached
└── RowError                one row cannot be used: becomes a counted reject, never a crash

All of them pickle (they are constructed from their positional arguments alone).
"""


class RedraftError(Exception):
    """Base of all errors that Redraft raises on purpose. The message says what to do about it."""


class FatalError(RedraftError):
    """Stops the stage."""


class ConfigError(FatalError):
    """A setting is unknown, malformed or contradicts another."""


class InputError(FatalError):
    """The user's data, image folder or checkpoint cannot be used at all."""


class StoreError(FatalError):
    """A read or write of the store failed."""


class CorruptPart(StoreError):
    """A part of a dataset or checkpoint does not have the sha256 that its manifest promises."""


class EmptyOutput(FatalError):
    """A stage ended without a single good row."""


class AccountingError(FatalError):
    """Rows in != ok + rejected + failed: a row was lost, which is a defect of the stage."""


class ClaimLost(FatalError):
    """Another process took this work over, because this one could not renew its claim in time."""


class Interrupted(FatalError):
    """An orderly stop: what is done is kept, and the work can be gone on with."""


class ExpertUnavailable(Interrupted):
    """The expert endpoint refuses connections or failed too often in a row."""


class BudgetExceeded(Interrupted):
    """A hard limit on cost, tokens, requests or time was reached."""


class PartialFailure(Interrupted):
    """Some shards failed; those that finished are kept. `redraft rerun` computes the missing ones alone."""


class ServerError(FatalError):
    """A Prefect or MLflow server could not be started or reached."""


class RowError(RedraftError):
    """One row cannot be used. `reason` is a short snake_case word that is counted; `detail` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail[:500]

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason
