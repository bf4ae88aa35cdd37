"""Reasoning tasks: a causal language model writes a derivation that a strict verifier accepts or rejects."""
