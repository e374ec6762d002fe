"""Which espeak-ng voice variants speak in which part of a synthetic corpus.

The two lists below come from measuring each variant: all words of the phrase grammar, spoken by it, were looked up
by their cepstra among the averages of the other variants, and variants were compared pairwise. Variants that are
not understood are never used. Variants that are (nearly) copies of each other, or an effect (robot, echo) rather than
a speaker, are used for training only, so that no test speaker has a twin in the training part.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import espeakng_loader

from espeak import voice_variants

# 1-64% of words found (Alicia, kaukovalta, zac, shelby, Demonic, Lee, ian), 54-82% WER of a trained recogniser
# (norbert, Jacky, zac, ian), whispers (whisper, whisperf, caleb), and a robot at 79%.
UNINTELLIGIBLE = frozenset(
    "Alicia kaukovalta zac shelby Demonic Lee ian norbert Jacky whisper whisperf caleb UniRobot".split()
)
TRAIN_ONLY = frozenset(
    (
        "adam klatt6 klatt4 klatt5 klatt klatt2 benjamin edward2 steph steph2 steph3 Diogo michel miguel Henrique Hugo"
        " Gene Gene2 iven iven2 iven3 iven4 aunty linda rob robert f2 f5 anika anikaRobot announcer"
        " RicishayMax RicishayMax2 RicishayMax3 robosoft robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 robosoft7"
        " robosoft8"
    ).split()
)


def draw_voices(counts: Sequence[tuple[str, int]], rng: random.Random) -> list[list[str]]:
    """Draw disjoint sets of voices.

    Args:
      counts: per part, the name of the config key that says how many voices, and how many. The first part is
        the training part: only it gets voices of `TRAIN_ONLY`, and it is drawn last.
      rng: the source of randomness.
    Returns:
      Per part, its voice variants.
    Raises:
      ValueError: more voices asked for than there are.
    """
    usable = [voice for voice in voice_variants() if voice not in UNINTELLIGIBLE]
    free = [voice for voice in usable if voice not in TRAIN_ONLY]
    rng.shuffle(free)
    drawn: list[list[str]] = []
    for key, count in counts[1:]:
        if not 1 <= count <= len(free):
            raise ValueError(f"`{key}` ({count}) must be from 1 to {len(free)}, the voices left for this part")
        drawn.append([free.pop() for _ in range(count)])
    train = free + [voice for voice in usable if voice in TRAIN_ONLY]
    rng.shuffle(train)
    key, count = counts[0]
    if not 1 <= count <= len(train):
        raise ValueError(f"`{key}` ({count}) must be from 1 to {len(train)}, the voices left for training")
    return [train[:count], *drawn]


def voice_sex(variant: str) -> str:
    """`F` or `M`, as SPEAKERS.TXT has it, from the variant's own file."""
    text = (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).read_bytes().decode("utf-8", "replace")
    return "F" if "gender female" in text.lower() else "M"
