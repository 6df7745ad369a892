"""The visualisation pipeline of Sec. 3.2: what a transformer can predict of its codes."""
