"""The stream of ingested batches -> the stage's output: nothing but a batch is in memory."""

from collections import Counter
from collections.abc import Iterable

from core.ingest.samples import IngestBatch
from core.stage import Output
from data_contracts import Corrections, HallucinationPairs, Samples
from data_contracts.samples import SPLITS


def write_ingested(output: Output, batches: Iterable[IngestBatch]) -> None:
    """Write and commit. A row counts as ok by its correction or pair, where it brings one, and else by its sample.

    Facts: samples of each split.
    """
    rows_in = 0
    splits: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
    for index, batch in enumerate(batches):
        tables = ((Corrections, batch.corrections), (HallucinationPairs, batch.pairs), (Samples, batch.samples))
        product = next((schema for schema, frame in tables if frame.height), Samples)
        for schema, frame in tables:
            if frame.height:
                output.write(schema, frame, part=f"{index:08d}", counted=schema is product)
        output.reject_frame(batch.rejects)
        splits.update(batch.samples["split"].to_list())
        rows_in += batch.rows_in
        output.progress(rows_in, None, {})
    output.commit(rows_in=rows_in, facts=dict(splits))
