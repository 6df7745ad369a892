"""A recipe: everything a run needs, in one frozen dataclass returned by one Python function."""

from dataclasses import dataclass

from semvq.config import Config
from semvq.training.loop import LoopConfig
from semvq.training.task import TaskConfig


@dataclass(frozen=True)
class Published(Config):
    """A figure the paper printed for this recipe's cell, to stand beside ours."""

    metric: str
    value: float
    where: str


@dataclass(frozen=True)
class Recipe(Config):
    """A named training. `upstream` names, by recipe, the run it starts from; None means none."""

    name: str
    summary: str
    task: TaskConfig
    loop: LoopConfig
    upstream: str | None = None
    published: tuple[Published, ...] = ()
