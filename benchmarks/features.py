"""How fast each extractor of filter banks is: seconds of audio per second, on one thread.

    python benchmarks/features.py [--utterances 100] [--batch-sizes 1 8 32] [--repeats 5] [--threads 1]

Utterances of noise, 2 to 17 s long, go through Lhotse's Fbank, kaldi-native-fbank (one by one) and, where it is
installed (`make kaldifeat`), kaldifeat in batches. The extractors take turns; rows are medians, ratios are of one run.
Audio is in memory and features are not stored, so a stage 2 that waits for its disk gains less.
Stage 2 computes one utterance after the other, in as many processes as there are cores: on a CPU batches bring nothing.
"""

import argparse
import sys
from pathlib import Path

from common import RECIPE, Step, median_seconds, read_config

sys.path.insert(0, str(RECIPE / "local"))

import kaldi_native_fbank as knf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lhotse.features import FeatureExtractor  # noqa: E402

from compute_fbank import HIGH_FREQ, make_extractor, why_no_kaldifeat  # noqa: E402
from twopass_kd.config.schema import FeaturesConfig

Audio = list[np.ndarray]


def make_audio(utterances: int, rate: int) -> Audio:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, int(rate * rng.uniform(2, 17))).astype(np.float32) for _ in range(utterances)]


def one_by_one(extractor: FeatureExtractor, audio: Audio, rate: int) -> None:
    for samples in audio:
        extractor.extract(samples, rate)


def in_batches(extractor: FeatureExtractor, audio: Audio, rate: int, size: int) -> None:
    for start in range(0, len(audio), size):
        extractor.extract_batch(audio[start : start + size], rate)


def native(features: FeaturesConfig, samples: np.ndarray) -> np.ndarray:
    """Filter banks by kaldi-native-fbank, with stage 2's settings: (T, num_mel_bins) float32."""
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = features.sampling_rate
    options.frame_opts.dither, options.frame_opts.snip_edges = 0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = features.num_mel_bins, HIGH_FREQ
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(features.sampling_rate, samples)
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def all_native(features: FeaturesConfig, audio: Audio) -> None:
    for samples in audio:
        native(features, samples)


def variants(features: FeaturesConfig, audio: Audio, batch_sizes: list[int]) -> dict[str, Step]:
    """What is timed, by name."""
    rate = features.sampling_rate
    lhotse = make_extractor(FeaturesConfig("lhotse", features.num_mel_bins, rate))
    found: dict[str, Step] = {
        "Lhotse Fbank": lambda: one_by_one(lhotse, audio, rate),
        "kaldi-native-fbank": lambda: all_native(features, audio),
    }
    if why_no_kaldifeat() is None:
        kaldifeat = make_extractor(FeaturesConfig("kaldifeat", features.num_mel_bins, rate))
        for size in batch_sizes:
            found[f"kaldifeat, {size} at once"] = lambda size=size: in_batches(kaldifeat, audio, rate, size)
    return found


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, default=RECIPE / "conf/mini.yaml", help="its `features` (default: mini)")
    parser.add_argument("--utterances", type=int, default=100, help="default: 100")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch's (default: 1, as each process of stage 2 has)")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    torch.set_num_threads(args.threads)
    features = read_config(args.conf).features
    audio = make_audio(args.utterances, features.sampling_rate)
    total = sum(map(len, audio)) / features.sampling_rate
    seconds = median_seconds(variants(features, audio, args.batch_sizes), args.repeats)
    print(f"{len(audio)} utterances, {total:.0f} s; {args.threads} thread(s); torch {torch.__version__}\n")
    print("| | s of audio per s | ratio to Lhotse |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {total / value:.0f} | {seconds['Lhotse Fbank'] / value:.2f} |")
    if why_no_kaldifeat() is not None:
        print(f"\nno kaldifeat: {why_no_kaldifeat()}; `make kaldifeat` installs it")


if __name__ == "__main__":
    main()
