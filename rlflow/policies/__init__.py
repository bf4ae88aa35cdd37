"""Policies shared by tasks; each answers the capability protocols of `rlflow.policy`."""
