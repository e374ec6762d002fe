"""How filter banks are computed, whoever computes them; besides what `features` in the config says."""

FRAME_SHIFT = 0.01  # seconds
LOW_FREQ, HIGH_FREQ = 20.0, -400.0  # Hz, the second one below the Nyquist frequency; as in icefall's recipes
