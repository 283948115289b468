"""What flows through Redraft: one dataframely schema per table.

Every table is stored as Parquet with its contract's name and version in the file's metadata.
"""

from data_contracts.contract import Contract, RowFailure, contract_of, split_rows
from data_contracts.corrections import Corrections
from data_contracts.drafts import Drafts
from data_contracts.evaluations import Evaluations
from data_contracts.hallucination_pairs import HallucinationPairs
from data_contracts.kinds import TokenKind
from data_contracts.reasks import Reasks
from data_contracts.rejects import Rejects
from data_contracts.revisions import Revisions
from data_contracts.samples import Samples
from data_contracts.traces import Traces
from data_contracts.training_examples import TrainingExamples

TABLES: dict[str, type[Contract]] = {
    schema.table: schema
    for schema in (
        Samples,
        HallucinationPairs,
        Drafts,
        Traces,
        Revisions,
        Reasks,
        Corrections,
        TrainingExamples,
        Evaluations,
        Rejects,
    )
}

__all__ = [
    "TABLES",
    "Contract",
    "Corrections",
    "Drafts",
    "Evaluations",
    "HallucinationPairs",
    "Reasks",
    "Rejects",
    "Revisions",
    "RowFailure",
    "Samples",
    "TokenKind",
    "Traces",
    "TrainingExamples",
    "contract_of",
    "split_rows",
]
