"""Claims files that ship with rlflow."""
