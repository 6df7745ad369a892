"""Images and token caches as streams that depend on the seed and the position only."""
