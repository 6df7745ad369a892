"""Frozen pretrained networks that losses and metrics look through."""
