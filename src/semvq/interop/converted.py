"""What a format makes of a file: a tokenizer, and words about its images."""

from typing import NamedTuple

from semvq.interop.opening import LeftOut
from semvq.tokenizer.model import Tokenizer


class Converted(NamedTuple):
    """A tokenizer and facts about it: range of its images in its own file, other files it read.

    `file` is the weight file's name where a folder was given, under the folder's.
    """

    tokenizer: Tokenizer
    pixel_range: str
    sha256: str
    left_out: LeftOut
    config_sha256: str | None = None
    file: str | None = None
