"""The commands of `rlflow`, one module a group; heavy libraries are imported when a command runs."""
