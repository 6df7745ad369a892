"""Tokenizers that the paper is measured against (Tables 2 and 5), trained by our loop.

Networks and rules for codes, each in a file of its own; importing this package makes all of them
known by name, so that their runs can be opened.
"""

from semvq.rivals import (  # noqa: F401
    factorized,
    kmeans,
    movq,
    multichannel,
    residual,
    vit,
    vqgan,
)
