"""MUSAN's noise, music and speech mixed into the features that are trained on."""

import random
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut

from twopass_kd.data.cut_lines import manifest_lines, whole_cut
from twopass_kd.files.layout import musan_cuts_path

MIX_PROBABILITY = 0.5
SNR_DB = (10.0, 20.0)  # evenly distributed between these
MIN_SECONDS, MAX_SECONDS = 5.0, 10.0  # of MUSAN's cuts


def find_musan(data_dir: Path) -> Path:
    """`musan_cuts_path`, if it is there.

    Raises:
      FileNotFoundError: it is not; names the stage that makes it.
    """
    path = musan_cuts_path(data_dir)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which `corpus.musan` (true) needs; stage 2 makes it: ./run.sh --stage 2"
            " --stop-stage 2; or say corpus.musan=false"
        )
    return path


class NoiseMixer:
    """Mixes MUSAN into half of the cuts, in the domain of features, as icefall does by Lhotse's `CutMix`.

    What a cut gets depends on the seed, the epoch and the cut's id alone: not on the batch it is in, nor on what a
    worker did before, so that a resumed training goes on as it would have.

    Args:
      data_dir: has `fbank/musan_cuts.jsonl.gz`, cuts of 5 to 10 s.
    Raises:
      FileNotFoundError: it has not (`find_musan`).
    """

    def __init__(self, data_dir: Path, seed: int, epoch: int) -> None:
        self.lines = list(manifest_lines(find_musan(data_dir)))  # 20 MB for 100 hours; as cuts ten times as much
        self.data_dir = data_dir
        self.seed, self.epoch = seed, epoch

    def mix(self, cut: Cut) -> Cut:
        """The cut as it is, or with noise from its beginning to its end; id, duration and supervisions stay."""
        rng = random.Random(f"{self.seed} {self.epoch} {cut.id}")
        if rng.random() >= MIX_PROBABILITY:
            return cut
        enough = min(len(self.lines), 1 + int(cut.duration / MIN_SECONDS))
        noise = [whole_cut(line, self.data_dir) for line in rng.sample(self.lines, enough)]
        mixed = CutSet.from_cuts([cut]).mix(CutSet.from_cuts(noise), snr=SNR_DB, preserve_id="left", seed=rng)
        return next(iter(mixed))
