"""Worlds whose facts are known exactly, so that every word of an answer can be checked."""
