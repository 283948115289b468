"""The formats that a dataset can be written in, by name, and which of them its tables allow.

llava     samples
vicrit    samples and hallucination_pairs
rediff    corrections, or drafts and revisions
hf        samples: a folder for datasets.load_dataset
parquet   any table
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

from core.errors import InputError
from core.export import huggingface, llava, parquet, rediff, vicrit
from core.export.source import Source

Export: TypeAlias = Callable[[Source, Path], int]

EXPORTS: dict[str, Export] = {
    "llava": llava.write,
    "vicrit": vicrit.write,
    "rediff": rediff.write,
    "parquet": parquet.write,
    "hf": huggingface.write,
}

_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "llava": (("samples",),),
    "vicrit": (("samples", "hallucination_pairs"),),
    "rediff": (("corrections",), ("drafts", "revisions")),
    "parquet": ((),),
    "hf": (("samples",),),
}
"""The tables that a format is made from; each group of them will do."""


def export(source: Source, name: str, target: Path) -> int:
    """Write the dataset in the format `name`; returns the number of rows written.

    Raises:
        InputError: there is no such format, or the dataset has not the tables for it (the message says which formats
            fit), or the target cannot be written.
        StoreError: an image of the dataset is missing from the store.
    """
    if name not in EXPORTS:
        raise InputError(f"unknown format {name!r}; there are {', '.join(EXPORTS)}")
    if name not in fitting(source.tables):
        needed = " or ".join(" and ".join(group) for group in _NEEDS[name])
        raise InputError(
            f"{name} is made from {needed}; this dataset has {', '.join(sorted(source.tables)) or 'no table'}, "
            f"which can be written as {', '.join(fitting(source.tables))}"
        )
    return EXPORTS[name](source, target)


def fitting(tables: Collection[str]) -> list[str]:
    """The formats that a dataset with these tables can be written in: ["samples"] -> ["llava", "parquet", "hf"]."""
    return [name for name, groups in _NEEDS.items() if any(set(group) <= set(tables) for group in groups)]
