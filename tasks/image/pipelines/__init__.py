"""Pretrained text-to-image pipelines of diffusers as flow policies: one adapter per pipeline class."""
