"""Judging trained models: figures that need pretrained networks or whole protocols."""
