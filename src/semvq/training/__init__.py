"""The one training loop, the tasks it runs, and what a run leaves on disk."""
