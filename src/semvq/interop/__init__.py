"""Other people's checkpoints, read once by `semvq convert` and from then on runs like any other.

One file per format; importing this package makes the networks of all runs known by name, the
rivals' too, so that they can be opened.
"""

import semvq.rivals  # noqa: F401
from semvq.interop import networks  # noqa: F401
from semvq.tokenizer.files import load_tokenizer as load_tokenizer
