"""Public formats in: one reader for each, one safe image decoder, one place where rows become samples."""

from core.ingest.images import decode, read_image, resolve_image
from core.ingest.llava import ingest_llava
from core.ingest.samples import CaptionLimit, IngestBatch, IngestSettings

__all__ = ["CaptionLimit", "IngestBatch", "IngestSettings", "decode", "ingest_llava", "read_image", "resolve_image"]
