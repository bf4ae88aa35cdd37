"""The embedded tasks; each imports only rlflow and registers through the entry points of pyproject.toml."""
