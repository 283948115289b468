"""How it is computed: a pure library that knows no orchestrator, no tracker, no environment and no command line."""
