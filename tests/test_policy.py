"""Rules of the house that a reader would otherwise have to take on trust."""

import ast
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_contracts", "core", "tasks", "flows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("name", PACKAGES)
def test_no_other_installed_package_ships_our_names(name):
    assert set(packages_distributions().get(name, ["redraft"])) == {"redraft"}


def test_only_tracking_imports_mlflow():
    importers = {path.relative_to(ROOT).as_posix() for path in SOURCES if "mlflow" in imported(path)}
    assert importers == {"tasks/tracking.py"}


def test_core_never_reads_the_environment():
    core = [path for path in SOURCES if path.is_relative_to(ROOT / "core")]
    assert [path.name for path in core if {"environ", "getenv"} & attributes(path)] == []


def test_files_and_functions_stay_small():
    long_files = [path.name for path in SOURCES if len(path.read_text().splitlines()) > 320]
    long_functions = [
        f"{path.name}:{node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert (long_files, long_functions) == ([], [])


def attributes(path: Path) -> set[str]:
    """Every attribute that a file reads or imports by name."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return read | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, those for type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found
