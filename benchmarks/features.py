"""How fast each extractor of filter banks is: seconds of audio per second, on one thread.

    python benchmarks/features.py [--utterances 100] [--batch-sizes 1 8 32] [--repeats 5] [--threads 1]

Utterances of noise, 2 to 17 s long, go through Lhotse's Fbank, the device's in numpy (one by one) and, where it is
installed (`make kaldifeat`), kaldifeat in batches. The extractors take turns; rows are medians, ratios are of one run.
Audio is in memory and features are not stored, so a stage 2 that waits for its disk gains less.
Stage 2 computes one utterance after the other, in as many processes as there are cores: on a CPU batches bring nothing.
"""

import numpy as np
import torch
from common import Step, make_parser, median_seconds, read_config
from lhotse.features import FeatureExtractor

from compute_fbank import make_extractor, why_no_kaldifeat
from twopass_kd.config.schema import FeaturesConfig
from twopass_kd.ondevice.features import OnlineFeatures

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


def online(features: FeaturesConfig, audio: Audio) -> None:
    for samples in audio:
        fbank = OnlineFeatures(features.num_mel_bins, features.sampling_rate)
        fbank.accept_waveform(samples)
        fbank.input_finished()
        fbank.read(0, fbank.num_ready)


def variants(features: FeaturesConfig, audio: Audio, batch_sizes: list[int]) -> dict[str, Step]:
    """What is timed, by name."""
    rate = features.sampling_rate
    lhotse = make_extractor(FeaturesConfig("lhotse", features.num_mel_bins, rate))
    found: dict[str, Step] = {
        "Lhotse Fbank": lambda: one_by_one(lhotse, audio, rate),
        "on the device": lambda: online(features, audio),
    }
    if why_no_kaldifeat() is None:
        kaldifeat = make_extractor(FeaturesConfig("kaldifeat", features.num_mel_bins, rate))
        for size in batch_sizes:
            found[f"kaldifeat, {size} at once"] = lambda size=size: in_batches(kaldifeat, audio, rate, size)
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--utterances", type=int, default=100, help="of noise")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="kaldifeat's")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--threads", type=int, default=1, help="torch's; each process of stage 2 has one")
    args = parser.parse_args()
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
