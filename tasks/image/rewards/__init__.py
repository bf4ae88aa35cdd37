"""What an image earns: one small file per reward, and the mix that a task asks for."""

from tasks.image.rewards.mix import RewardMix, Scores, open_rewards
from tasks.image.rewards.reward import Prompt, Reward, RewardError

__all__ = ["Prompt", "Reward", "RewardError", "RewardMix", "Scores", "open_rewards"]
