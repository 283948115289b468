"""Datasets out: the public formats that core.ingest reads, and Parquet that other tools open."""
