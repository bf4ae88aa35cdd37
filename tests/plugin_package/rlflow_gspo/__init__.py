"""GSPO for rlflow."""
