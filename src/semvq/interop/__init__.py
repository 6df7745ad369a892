"""Other people's checkpoints, read once by `semvq convert` and from then on runs like any other.

One file per format; importing this package makes the networks of all runs known by name, the
rivals' too, so that they can be opened. And ours for others: ONNX graphs, folders for a hub.
"""

import semvq.rivals  # noqa: F401
from semvq.interop import networks  # noqa: F401
from semvq.interop.hub import load_generator as load_generator
from semvq.interop.hub import load_tokenizer as load_tokenizer
from semvq.interop.hub import push_to_hub as push_to_hub
