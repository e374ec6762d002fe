"""How filter banks are computed, whoever computes them; besides what `features` in the config says."""

import numpy as np

FRAME_SHIFT = 0.01  # seconds
LOW_FREQ, HIGH_FREQ = 20.0, -400.0  # Hz, the second one below the Nyquist frequency; as in icefall's recipes


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Kaldi's mel scale."""
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def mel_edges(num_bins: int, sampling_rate: int) -> np.ndarray:
    """(num_bins + 2,) mel, evenly spaced: bin i begins at edge i, peaks at the next one and ends at the one after."""
    return np.linspace(mel(LOW_FREQ), mel(sampling_rate / 2 + HIGH_FREQ), num_bins + 2)
