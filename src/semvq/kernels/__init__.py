"""Code for one kind of device: each kernel does what a line of PyTorch does elsewhere, faster."""
