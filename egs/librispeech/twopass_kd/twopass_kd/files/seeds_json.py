"""`seeds.json`: what stage 9 says of the experiments of several seeds together."""

from typing import Any

from twopass_kd.files.decode_json import Parts, Pass
from twopass_kd.files.json_model import JsonModel, Number
from twopass_kd.files.results_json import Claim, Corpus


class OverSeeds(JsonModel):
    """A figure of each seed."""

    mean: Number
    """Their mean."""
    low: Number
    """The lowest."""
    high: Number
    """The highest."""
    each: list[Number]
    """Of each seed, in the order of `seeds`."""


class SeedsSystem(JsonModel):
    """A system that every seed has."""

    name: str
    """Its `report_as` in the config."""
    params: Parts
    """Deployed parameters; heads used in training only are not counted."""
    wer: dict[str, dict[Pass, OverSeeds | None]]
    """WER in percent by set, dev sets included, and pass; null for a system without a second pass."""
    conditions: dict[str, dict[str, dict[Pass, Number]]]
    """Mean WER in percent by test set, condition and pass, of some utterances of the set; `clean`: as they are."""
    train_seconds: OverSeeds
    """Seconds of training, with the phases that it started from."""
    updates: int | None
    """Steps of the optimizer, with those of the phases that it started from; null of an external teacher."""


class SeedsJson(JsonModel):
    """A seeds.json."""

    conf: str
    """Name of the config."""
    corpus: Corpus
    """What was trained and tested on."""
    words: dict[str, int]
    """Words of the references, by set."""
    seeds: list[int]
    """The seeds that are decoded."""
    unfinished: list[int]
    """The config's other seeds."""
    systems: list[SeedsSystem]
    """The systems that all of these seeds have, teacher first."""
    not_in_all: list[str]
    """Systems that only some have."""
    claims: list[Claim]
    """The config's claims on each test set over all seeds, with verdicts."""
    environment: dict[str, Any]
    """Machine and software of the scoring; null where one is unknown."""

    def system(self, name: str) -> SeedsSystem | None:
        """The entry of a system; None where not every seed has it."""
        return next((s for s in self.systems if s.name == name), None)
