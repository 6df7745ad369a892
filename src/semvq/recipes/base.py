"""What recipes share: deriving a decoder-only phase."""

from dataclasses import replace

from semvq.training.recipe import Published, Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig


def decoder_phase(
    first: Recipe,
    *,
    name: str,
    summary: str,
    duration: str,
    learning_rate: float,
    attention_pairs: int,
    published: tuple[Published, ...] = (),
) -> Recipe:
    """Phase 2 of the tokenizer `first` trained (Sec. 3.4).

    The code space is frozen, the decoder gets `attention_pairs` per level (0 is the control), and
    alpha is 0. The discriminator is phase 1's, so it acts from the start (D13).
    """
    task = first.task
    assert isinstance(task, TokenizerTaskConfig), "phase 2 follows a tokenizer recipe"
    gan = task.adversarial and replace(
        task.adversarial, start="0 steps", warmup="0 steps", ramp="0 steps"
    )
    return Recipe(
        name=name,
        summary=summary,
        task=replace(
            task,
            tokenizer=replace(task.tokenizer, decoder_attention_pairs=attention_pairs),
            optim=replace(task.optim, learning_rate=learning_rate),
            perceptual=replace(task.perceptual, alpha=0.0),
            adversarial=gan,
            freeze_code_space=True,
        ),
        loop=replace(first.loop, duration=duration),
        upstream=first.name,
        published=published,
    )
