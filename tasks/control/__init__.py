"""Continuous control: Gymnasium's MuJoCo environments, with Gaussian and flow policies."""
