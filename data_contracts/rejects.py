"""Every row that a stage dropped, and why."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract


class Rejects(Contract):
    """`outcome`: `rejected` (the row is at fault) or `failed` (we could not process it; a re-run may)."""

    table: ClassVar[str] = "rejects"
    id_column: ClassVar[str] = "row_id"

    stage = dy.String()
    row_id = dy.String()
    outcome = dy.Enum(("rejected", "failed"))
    reason = dy.String(min_length=1)
    detail = dy.String(max_length=500)
