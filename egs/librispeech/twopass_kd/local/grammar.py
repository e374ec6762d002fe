"""Two small grammars that give the synthetic corpora their sentences.

`phrases`: everyday English sentences of 3-13 words out of 104 words, upper case as in LibriSpeech.
`digits`: spoken digit strings such as "THREE FIVE OH NINE".
No two words of a grammar sound the same, so that a perfect recogniser could reach 0% WER.
"""

import random
from collections.abc import Callable, Sequence

MAX_FRAGMENT_WORDS = 4

_DETERMINERS = "THE THE THE A MY HIS HER OUR".split()
_ADJECTIVES = "GREEN YELLOW SMALL OLD YOUNG QUIET HAPPY BROKEN HEAVY FAMOUS GOLDEN PERFECT".split()
_PEOPLE = "DOCTOR TEACHER FARMER CAPTAIN CHILDREN WOMAN BROTHER MOTHER SOLDIER STUDENT".split()
_ANIMALS = "DOG HORSE RABBIT MONKEY ELEPHANT".split()
_THINGS = (
    "WINDOW TABLE LETTER BASKET CANDLE MIRROR BLANKET BOTTLE UMBRELLA NEWSPAPER GUITAR ORANGE DIAMOND SANDWICH"
).split()
_PLACES = "GARDEN KITCHEN RIVER MOUNTAIN VILLAGE MARKET BRIDGE STATION LIBRARY ISLAND".split()
_VERBS_WITH_OBJECT = "FOUND CARRIED BOUGHT PAINTED WATCHED OPENED BORROWED DROPPED COVERED".split()
_VERBS = "WALKED WAITED LAUGHED ARRIVED DANCED WHISPERED".split()
_PREPOSITIONS = "NEAR BEHIND UNDER ACROSS INSIDE".split()
_ADVERBS = "SLOWLY QUICKLY OFTEN NEVER FINALLY".split()
_NUMBERS = "THREE FIVE SEVEN TWELVE".split()
_UNITS = "DAYS HOURS WEEKS".split()
_TIMES = "YESTERDAY,TODAY,AFTER DINNER,AT MIDNIGHT,ON FRIDAY".split(",")
_LINKS = "AND BECAUSE".split()
_PRONOUNS = "HE SHE WE THEY".split()
_DIGITS = "ZERO OH ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()


def _noun_phrase(rng: random.Random, nouns: Sequence[str], adjective: float = 0.45) -> list[str]:
    words = [rng.choice(_DETERMINERS)]
    if rng.random() < adjective:
        words.append(rng.choice(_ADJECTIVES))
    words.append(rng.choice(nouns))
    if words[0] == "A" and words[1][0] in "AEIOU":
        words[0] = "THE"
    return words


def _time(rng: random.Random) -> list[str]:
    if rng.random() < 0.35:
        return [rng.choice(_NUMBERS), rng.choice(_UNITS), "LATER"]
    return rng.choice(_TIMES).split()


def _place(rng: random.Random) -> list[str]:
    return [rng.choice(_PREPOSITIONS), *_noun_phrase(rng, _PLACES, adjective=0.25)]


def _clause(rng: random.Random) -> list[str]:
    if rng.random() < 0.3:
        words = [rng.choice(_PRONOUNS)]
    else:
        words = _noun_phrase(rng, _ANIMALS if rng.random() < 0.35 else _PEOPLE)
    if rng.random() < 0.3:
        words.append(rng.choice(_ADVERBS))
    if rng.random() < 0.65:
        return [*words, rng.choice(_VERBS_WITH_OBJECT), *_noun_phrase(rng, _THINGS)]
    return [*words, rng.choice(_VERBS)]


def _phrase_sentence(rng: random.Random) -> list[str]:
    words = _clause(rng)
    if rng.random() < 0.4:
        words += _place(rng)
    if rng.random() < 0.35:
        words = [*_time(rng), *words] if rng.random() < 0.3 else [*words, *_time(rng)]
    if rng.random() < 0.15:
        words += [rng.choice(_LINKS), *_clause(rng)]
    return words


def _phrase_fragment(rng: random.Random) -> list[str]:
    kind = rng.randrange(5)
    if kind == 0:
        return _noun_phrase(rng, _THINGS + _PEOPLE + _ANIMALS)
    if kind == 1:
        return _place(rng)
    if kind == 2:
        return _time(rng)
    if kind == 3:
        return [rng.choice(_PRONOUNS), *([rng.choice(_ADVERBS)] if rng.random() < 0.5 else []), rng.choice(_VERBS)]
    return [rng.choice(_ADJECTIVES), rng.choice(_PLACES + _THINGS)][rng.randrange(2) :]


def _digits(rng: random.Random, fewest: int, most: int) -> list[str]:
    return [rng.choice(_DIGITS) for _ in range(rng.randint(fewest, most))]


# grammar -> (draws a sentence, draws a fragment, fewest and most words of a sentence)
_RULES: dict[str, tuple[Callable, Callable, int, int]] = {
    "phrases": (_phrase_sentence, _phrase_fragment, 3, 13),
    "digits": (lambda rng: _digits(rng, 4, 10), lambda rng: _digits(rng, 1, MAX_FRAGMENT_WORDS), 4, 10),
}


def draw_texts(grammar: str, num_sentences: int, num_fragments: int, used: set[str], rng: random.Random) -> list[str]:
    """Draw distinct sentences, then distinct fragments of 1-4 words.

    Args:
      grammar: `phrases` or `digits`.
      num_sentences, num_fragments: how many of each.
      used: texts drawn before, for other parts; they are not drawn again, and the new ones are added.
      rng: the source of randomness.
    Raises:
      ValueError: an unknown grammar, or more texts asked for than the grammar readily gives.
    """
    if grammar not in _RULES:
        raise ValueError(f"`grammar` ({grammar}) must be one of {', '.join(_RULES)}")
    sentence, fragment, low, high = _RULES[grammar]
    texts: list[str] = []
    wanted = (
        ("sentences", num_sentences, sentence, low, high),
        ("fragments", num_fragments, fragment, 1, MAX_FRAGMENT_WORDS),
    )
    for what, count, rule, fewest, most in wanted:
        goal = len(texts) + count
        for _ in range(100 * count + 1000):
            if len(texts) == goal:
                break
            words = rule(rng)
            text = " ".join(words)
            if fewest <= len(words) <= most and text not in used:
                used.add(text)
                texts.append(text)
        if len(texts) < goal:
            raise ValueError(f"`{what}` ({count}) must be fewer: the grammar `{grammar}` ran out of distinct ones")
    return texts
