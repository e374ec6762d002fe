"""`results.json`: what stage 9 scored, and all that the reports show of it."""

from typing import Any, Literal

from pydantic import Field

from twopass_kd.files.decode_json import Delay, FurtherSearch, Parts, Pass, ScanPoint
from twopass_kd.files.json_model import JsonModel, Number
from twopass_kd.files.ondevice_json import OnDeviceJson


class Wer(JsonModel):
    """The word error rate of one system, set and pass."""

    wer: Number
    """In percent."""
    ci95: tuple[Number, Number]
    """Its 95% bootstrap interval over speakers (over utterances, where fewer than five are known), in percent."""
    ins: int = 0
    """Words inserted."""
    dels: int = 0
    """Words deleted."""
    subs: int = 0
    """Words substituted."""


class SetWer(JsonModel):
    """The word error rates of one system on one set."""

    greedy_search: Wer
    """Of greedy search."""
    ref_words: int
    """Words of the references."""
    num_utts: int
    """Utterances."""
    first_pass: Wer
    """Of the transducer's beam search."""
    two_pass: Wer | None
    """After rescoring; null for a system without a second pass."""

    def __getitem__(self, name: Pass) -> Wer | None:
        return getattr(self, name)


class System(JsonModel):
    """A decoded system."""

    name: str
    """Its `report_as` in the config."""
    phase: str
    """The phase that trained it last."""
    params: Parts
    """Deployed parameters; heads used in training only are not counted."""
    bytes: Parts
    """Bytes of the deployed parameters."""
    wer: dict[str, SetWer]
    """By set, dev sets included."""
    rtf: dict[str, dict[Pass, Number | None]]
    """Seconds of computing for each second of audio, by set and pass."""
    train_seconds: Number
    """Seconds of training, with the phases that it started from."""
    updates: int | None = None
    """Steps of the optimizer, with those of the phases that it started from; null of an external teacher."""
    rescore_weight: Number | None
    """Weight of the attention decoder that was chosen on dev; null without a second pass."""
    length_reward: Number | None
    """Length reward that was chosen on dev, in nats for each token; null without a second pass."""
    weight_scan: list[ScanPoint]
    """What they were chosen from."""
    conditions: dict[str, dict[str, dict[Pass, Number]]] = {}
    """WER in percent by test set, condition and pass, of some utterances of the set; `clean`: of these as they are."""
    delays: dict[str, dict[Pass, Delay]] = {}
    """When words appear, by set and pass; empty where nobody knows when they are said."""
    searches: dict[str, FurtherSearch] = {}
    """Further searches by their names; empty where there are none."""
    searches_left_out: str | None = None
    """Why searches that were asked for were not run; null where they were."""


class Corpus(JsonModel):
    """What was trained and tested on."""

    kind: str
    """`corpus.kind` of the config."""
    synthetic: bool
    """Whether the speech is synthetic."""
    train_parts: list[str]
    """Sets trained on."""
    dev_parts: list[str]
    """Sets on which weights were chosen."""
    test_parts: list[str]
    """Sets tested on."""


class Compression(JsonModel):
    """What the smallest of the student and the systems that stage 10 exports does without."""

    system: str = "student"
    """Its `report_as`."""
    params: Number
    """Share of the teacher's deployed parameters, from 0 to 1."""
    bytes: Number
    """Share of the teacher's bytes."""


class Claim(JsonModel):
    """A claim of the config on one test set, and what the measurement says."""

    system: str
    """`report_as` of the system."""
    against: str
    """`report_as` of the one it is compared with."""
    kind: Literal["non_inferior", "superior"]
    """`non_inferior`: its WER is above the other's by less than the margin; `superior`: below the other's."""
    margin_relative: Number | None
    """The margin as a share of the other's WER; null where it is in points, or there is none."""
    margin_points: Number | None
    """The margin in points of WER; null where it is relative, or there is none."""
    set: str
    """Test set."""
    pass_name: Pass
    """Whose WERs are compared: the claim's, or the first pass where a system has no second."""
    verdict: Literal["shown", "refuted", "undecided", "not measured"]
    """`shown` and `refuted` where `p_holm` is below 0.05; `not measured` where a system was not decoded."""
    delta_wer: Number | None = None
    """WER of the system minus that of the other, in points, the mean over seeds; null where not measured."""
    ci95: tuple[Number, Number] | None = None
    """Its 95% interval: by a bootstrap, wider for few speakers, or with several seeds by crossed random effects."""
    margin: Number | None = None
    """The margin in points: for a relative one, of the other's WER; 0 for `superior`."""
    p: Number | None = None
    """Two-sided, of the difference from the margin; null where there is too little to show anything."""
    p_holm: Number | None = None
    """The same, corrected for the number of claims of the config on all sets (Holm)."""
    clusters: int | None = None
    """What was resampled: so many speakers, or utterances where speakers are not known or nobody speaks twice."""
    by_speaker: bool | None = None
    """Whether those are speakers."""
    times: Number | None = None
    """How many times as many would decide it with a power of 80%, if the difference stays; null where decided."""
    seeds: int | None = None
    """How many seeds have both systems."""
    by_seed: list[Number] = []
    """The difference of each of them."""
    seeds_needed: int | None = None
    """How many seeds would decide it, if the difference stays; null where decided, or where they would not."""
    too_few: Literal["speakers", "seeds"] | None = None
    """What there is too little of to show anything: five speakers, or of several seeds three."""


class StageTime(JsonModel):
    """A finished stage of run.sh."""

    stage: int
    """Its number."""
    title: str = ""
    """Its title."""
    seconds: Number
    """Its wall time."""
    finished: str
    """When it was done, in ISO 8601."""


class ResultsJson(JsonModel):
    """A results.json."""

    conf: str
    """Name of the config."""
    corpus: Corpus
    """What was trained and tested on."""
    seed: int
    """The config's, also of the bootstraps."""
    bootstrap_samples: int
    """Resamples of each bootstrap."""
    environment: dict[str, Any]
    """Machine and software of the scoring; null where one is unknown."""
    systems: list[System] = Field(min_length=1)
    """The decoded systems, teacher first."""
    not_decoded: list[str]
    """Systems of the config that were not decoded."""
    compression: Compression | None
    """The smallest system against the teacher; null without both."""
    claims: list[Claim]
    """The config's claims on each test set, with verdicts."""
    on_device: OnDeviceJson | None = None
    """What stage 10 measured; null where it has not run, or not since the training."""
    stages: list[StageTime]
    """Stages that are done, in order."""

    def system(self, name: str) -> System | None:
        """The entry of a system; None where it was not decoded."""
        return next((s for s in self.systems if s.name == name), None)

    @property
    def smallest(self) -> str:
        """The system that headlines are about."""
        return self.compression.system if self.compression else "student"
