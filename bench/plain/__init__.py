"""Plain eager PyTorch versions of what the library does: the reference and the tests' oracle.

Written from the definitions, over weights by name, without the library's modules and tricks.
"""
