"""rlflow: any reinforcement-learning algorithm on any task through one loop, with honest leaderboards."""

__version__ = "0.1.0"
