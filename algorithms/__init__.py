"""The five built-in algorithms; each imports only rlflow and registers through the entry points of pyproject.toml."""
