"""Orchestration only: flows, servers, command line, report."""
