"""Suites that come with rlflow, one YAML file each."""
