"""The velocity network of the embedded image tasks: a small convolutional U-Net that reads the caption twice.

The caption enters through FiLM (flattened token embeddings, which keep the slot of every word) and through
cross-attention at a half and a quarter of the size (which binds words to places).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 8
# Below this s the velocity of an x0 prediction would amplify its error by more than 20.
_MIN_S = 0.05


@dataclass(frozen=True, kw_only=True)
class ShapesNetConfig:
    """Sizes of `ShapesNet`, stored as config.json next to its weights.

    Attributes:
        channels: widths at full, half and quarter size; each divisible by 8 (group norm) and by `heads`.
        token_dim: width of a token embedding.
        condition_dim: width of the FiLM condition.
        heads: attention heads.
        caption_length: tokens of a caption.
        vocabulary_size: rows of the token embedding.
        image_channels: of the pictures; 3 is RGB, 1 grey.
        size: height and width of the pictures; each divisible by 4.
    """

    channels: tuple[int, int, int] = (32, 48, 64)
    token_dim: int = 48
    condition_dim: int = 192
    heads: int = 4
    caption_length: int = 7
    vocabulary_size: int = 14
    image_channels: int = 3
    size: tuple[int, int] = (16, 16)

    def __post_init__(self) -> None:
        """Refuse a size that two halvings and doublings would not give back."""
        if self.size[0] % 4 or self.size[1] % 4:
            raise ValueError(f"size: expected height and width divisible by 4, found {self.size}")


class _FilmBlock(nn.Module):
    """Residual pair of 3 x 3 convolutions; the condition scales and shifts between them. [b, C_in, h, w] -> C_out."""

    def __init__(self, channels_in: int, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_GROUPS, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.film = nn.Linear(condition_dim, 2 * channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm(self.conv_in(F.silu(self.norm_in(x)))) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv(F.silu(hidden))
        return out


class _CaptionAttention(nn.Module):
    """Self-attention over pixels, then a separate cross-attention to the caption. [b, C, h, w] -> same."""

    def __init__(self, channels: int, token_dim: int, heads: int, pixels: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(pixels, channels) * 0.1)
        self.norm_self, self.norm_cross = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out_self = nn.Linear(channels, channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_dim, 2 * channels)
        self.out_cross = nn.Linear(channels, channels)
        nn.init.zeros_(self.out_self.weight)
        nn.init.zeros_(self.out_cross.weight)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = (len(query), -1, self.heads, query.shape[-1] // self.heads)
        query, key, value = (x.reshape(shape).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)  # [b, h*w, C]
        placed = self.norm_self(pixels) + self.place
        pixels = pixels + self.out_self(self._attend(*self.qkv(placed).chunk(3, dim=-1)))
        key, value = self.key_value(words).chunk(2, dim=-1)
        query = self.query(self.norm_cross(pixels) + self.place)
        pixels = pixels + self.out_cross(self._attend(query, key, value))
        out: Tensor = pixels.transpose(1, 2).reshape(x.shape)
        return out


class ShapesNet(nn.Module):
    """Velocity field v(x_s, s | caption) of small pictures, through a prediction of the clean image.

    `v = (x - x0_hat) / max(s, .05)`: the network learns x0, which is bounded and easy near s = 1, while callers
    see the rectified-flow velocity v = eps - x0.
    """

    def __init__(self, config: ShapesNetConfig) -> None:
        """Build with fresh weights drawn from torch's global generator."""
        super().__init__()
        self.config = config
        wide, mid, deep = config.channels
        cond, token = config.condition_dim, config.token_dim
        half = config.size[0] * config.size[1] // 4
        self.embed = nn.Embedding(config.vocabulary_size, token)
        self.slot = nn.Parameter(torch.randn(config.caption_length, token) * 0.1)
        self.mix = nn.Sequential(
            nn.Conv1d(token, 2 * token, 3, padding=1), nn.SiLU(), nn.Conv1d(2 * token, token, 3, padding=1)
        )
        self.caption = nn.Sequential(nn.Linear(config.caption_length * token, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.time = nn.Sequential(nn.Linear(64, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.stem = nn.Conv2d(config.image_channels, wide, 3, padding=1)
        self.enter16 = _FilmBlock(wide, wide, cond)
        self.down8 = nn.Conv2d(wide, mid, 3, stride=2, padding=1)
        self.enter8 = _FilmBlock(mid, mid, cond)
        self.attend8 = _CaptionAttention(mid, token, config.heads, half)
        self.down4 = nn.Conv2d(mid, deep, 3, stride=2, padding=1)
        self.enter4 = _FilmBlock(deep, deep, cond)
        self.attend4 = _CaptionAttention(deep, token, config.heads, half // 4)
        self.leave4 = _FilmBlock(deep, deep, cond)
        self.up8 = nn.Conv2d(deep, mid, 3, padding=1)
        self.leave8 = _FilmBlock(2 * mid, mid, cond)
        self.attend8_out = _CaptionAttention(mid, token, config.heads, half)
        self.up16 = nn.Conv2d(mid, wide, 3, padding=1)
        self.leave16 = _FilmBlock(2 * wide, wide, cond)
        self.norm = nn.GroupNorm(_GROUPS, wide)
        self.head = nn.Conv2d(wide, config.image_channels, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, s: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Velocity at noise level s.

        Args:
            x: [b, C, H, W] noisy images.
            s: [b] in [0, 1]; 1 is noise, 0 is data.
            context: `tokens` [b, caption_length] int64.

        Returns:
            [b, C, H, W] velocity eps - x0.
        """
        tokens = self.embed(context["tokens"]) + self.slot
        words = tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2)
        condition = F.silu(self.caption(tokens.flatten(1)) + self.time(_time_features(s)))
        clean = self._denoise(x, words, condition)
        return (x - clean) / s.clamp(min=_MIN_S)[:, None, None, None]

    def freeze_drawing(self) -> None:
        """Take the 2-d convolutions and their norms out of training; what reads caption and time stays."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.requires_grad_(False)

    def _denoise(self, x: Tensor, words: Tensor, condition: Tensor) -> Tensor:
        fine = self.enter16(self.stem(x), condition)
        middle = self.attend8(self.enter8(self.down8(fine), condition), words)
        deep = self.attend4(self.enter4(self.down4(middle), condition), words)
        deep = self.leave4(deep, condition)
        back = self.up8(F.interpolate(deep, scale_factor=2.0))
        back = self.attend8_out(self.leave8(torch.cat([back, middle], 1), condition), words)
        back = self.up16(F.interpolate(back, scale_factor=2.0))
        back = self.leave16(torch.cat([back, fine], 1), condition)
        clean: Tensor = self.head(F.silu(self.norm(back)))
        return clean


def _time_features(s: Tensor) -> Tensor:
    """Sines and cosines of 1000 s at 32 frequencies; [b, 64]."""
    frequency = torch.exp(torch.arange(32, device=s.device) * (-math.log(10_000.0) / 32))
    angle = 1000.0 * s[:, None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def load_network(folder: Path, task: str = "image/shapes") -> ShapesNet:
    """Rebuild a pretrained network from model.safetensors and config.json.

    Raises:
        FileNotFoundError: the folder holds none; names the command that makes one for `task`.
    """
    weights, sizes = folder / "model.safetensors", folder / "config.json"
    if not (weights.is_file() and sizes.is_file()):
        raise FileNotFoundError(
            f"no pretrained network in {folder}; expected model.safetensors and config.json: make them with "
            f"`rlflow pretrain {task} --out {folder}`, or leave task.base empty for the shipped one"
        )
    content = json.loads(sizes.read_text(encoding="utf-8"))["network"]
    tuples = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    network = ShapesNet(ShapesNetConfig(**{**content, **tuples}))
    network.load_state_dict(load_file(weights))
    return network
