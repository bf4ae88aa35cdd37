"""Rollout engines of causal language models: token ids in, token ids and their log-probabilities out."""
