"""Transformers over codes (AR and NAR), how they are sampled, and the noise they are given."""
