"""For one kind of device: Triton kernels, captured graphs, and what decides whether they serve.

Everything here has a plain twin elsewhere, which says what is computed.
"""
