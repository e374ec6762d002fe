"""`decode/<system>/decode.json`: how stage 8 decoded a system, and what it cost."""

from enum import Enum

from twopass_kd.files.json_model import JsonModel, Number


class Pass(str, Enum):
    """What a system recognises with: the transducer by either search, or its n-best list rescored."""

    GREEDY_SEARCH = "greedy_search"
    FIRST_PASS = "first_pass"  # the transducer's modified beam search
    TWO_PASS = "two_pass"

    __str__ = str.__str__  # as it is written in files and their names

    @property
    def title(self) -> str:
        """For tables: `greedy`, `first pass`, `two-pass`."""
        return _TITLES[self]


_TITLES = {Pass.GREEDY_SEARCH: "greedy", Pass.FIRST_PASS: "first pass", Pass.TWO_PASS: "two-pass"}


class Parts(JsonModel):
    """A size by part of the deployed model; a system without a second pass has 0 for its attention decoder."""

    encoder: int
    """Of the encoder."""
    decoder: int
    """Of the prediction network."""
    joiner: int
    """Of the joiner."""
    attention_decoder: int
    """Of the second pass."""
    total: int
    """Of all of them."""


PARTS = tuple(Parts.model_fields)


class Decoding(JsonModel):
    """How a system is decoded; exports and runtimes take it over."""

    beam: int
    """Hypotheses that the first pass keeps."""
    nbest: int
    """Hypotheses that the second pass rescores."""
    rescore_weight: Number | None
    """Weight of the attention decoder, from 0 to 1; null without a second pass."""
    length_reward: Number | None
    """Added to a hypothesis for each token, in nats; null without a second pass."""


class ScanPoint(JsonModel):
    """A weight and a length reward that were tried on the dev sets."""

    weight: Number
    """Weight of the attention decoder."""
    length_reward: Number
    """Length reward, in nats for each token."""
    wer: Number
    """WER on the dev sets, in percent."""


class SearchWer(JsonModel):
    """WER of a further search on one set, in percent."""

    first_pass: Number
    """Of the search alone."""
    two_pass: Number | None
    """After rescoring; null without a second pass."""

    def __getitem__(self, name: Pass) -> Number | None:
        return getattr(self, name)


class FurtherSearch(JsonModel):
    """What a search of `decode.searches` finds."""

    wer: dict[str, SearchWer]
    """By set."""
    rtf: dict[str, dict[Pass, Number | None]]
    """Seconds of computing for each second of audio, by set and pass."""
    lm_scale: Number | None
    """Scale of the language model that was chosen on dev; null without one."""


class CheckpointDecoding(Decoding):
    """What exports and runtimes read of a decode.json."""

    identity: str
    """Identity of the checkpoint that was decoded."""

    def decoding(self) -> Decoding:
        """Without the checkpoint."""
        return Decoding(**{name: getattr(self, name) for name in Decoding.model_fields})


class Delay(JsonModel):
    """When the words of a pass appear, in seconds: those of the transcript that are recognised."""

    words: int
    """How many they are."""
    p50: Number
    """Median of the time from a word's end to its last token."""
    p90: Number
    """90th percentile of that."""
    p99: Number
    """99th percentile of that."""
    start_mean: Number
    """Mean of the time from a word's beginning to its first token."""
    end_mean: Number
    """Mean of the time from a word's end to its last token."""
    start_variance: Number
    """Variance of the former."""
    end_variance: Number
    """Variance of the latter."""


class DecodeJson(CheckpointDecoding):
    """What scoring reads of a decode.json."""

    phase: str
    """The phase that trained it last, e.g. `student/deep`."""
    params: Parts
    """Parameters."""
    bytes: Parts
    """Bytes of the parameters."""
    train_seconds: Number
    """Seconds of training, with the phases that it started from."""
    updates: int | None = None
    """Steps of the optimizer, with those of the phases that it started from; null of an external teacher."""
    weight_scan: list[ScanPoint]
    """What weight and length reward were chosen from; empty without a second pass."""
    rtf: dict[str, dict[Pass, Number | None]]
    """Seconds of computing for each second of audio, by set and pass."""
    speakers: dict[str, dict[str, str]] = {}
    """Who speaks, by set and cut id, as far as the manifests say it."""
    conditions: dict[str, dict[str, dict[Pass, Number]]] = {}
    """WER in percent by test set, condition and pass, of some utterances of the set; `clean`: of these as they are."""
    delays: dict[str, dict[Pass, Delay]] = {}
    """When words appear, by set and pass; empty where nobody knows when they are said."""
    searches: dict[str, FurtherSearch] = {}
    """Further searches by their names; empty where there are none."""
    searches_left_out: str | None = None
    """Why searches that were asked for were not run; null where they were."""
