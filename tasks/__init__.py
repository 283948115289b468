"""Thin Prefect tasks: open refs, call core, write a ref. Only `tracking` knows MLflow."""
