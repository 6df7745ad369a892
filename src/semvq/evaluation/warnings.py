"""What a reader of figures has to know of them, in one sentence each."""

from collections.abc import Mapping, Sequence


def few_images(distances: Sequence[str], counts: Mapping[str, int], width: int) -> str:
    """That Fréchet distances of too few images are too large; "" where there are enough.

    With no more images than features the covariance lacks directions. `counts` are the images of
    both sides, under the words for them; `width` is the number of features.
    """
    few = [f"{name} {count}" for name, count in counts.items() if count <= width]
    if not few or not distances:
        return ""
    verb = "is" if len(distances) == 1 else "are"
    return (
        f"no more images than the {width} features ({', '.join(few)}): {', '.join(distances)} "
        f"{verb} biased upwards; compare at equal counts alone"
    )


def no_score(counts: Mapping[str, int], least: int) -> str:
    """Why sets of images have no classifier's score; "" where none lacks it.

    `counts` are the images of those that lack it, under the words for them. A score takes `least`
    images, and all that were announced: its parts are of fixed sizes.
    """
    reasons = [
        f"{name} {count}: " + (f"it takes {least}" if count < least else "a file could not be read")
        for name, count in counts.items()
    ]
    return f"no classifier's score ({', '.join(reasons)})" if reasons else ""
