"""When has the speaker finished? The three rules of sherpa-onnx, in seconds of audio."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EndpointRules:
    """An utterance ends as soon as one of these holds (defaults: sherpa-onnx's rule1, rule2 and rule3).

    Silence is what the search says nothing in: the time since the best hypothesis's last token.

    Attributes:
      silence: so many seconds of silence, even if nothing was said.
      silence_after_speech: so many seconds of silence after something was said.
      max_length: the utterance is so many seconds long.
    """

    silence: float = 2.4
    silence_after_speech: float = 1.2
    max_length: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` ({value}) must be positive seconds")

    def reached(self, length: float, trailing_silence: float, any_token: bool) -> bool:
        """Whether an utterance of `length` seconds with `trailing_silence` seconds at its end has ended."""
        return (
            trailing_silence >= self.silence
            or (any_token and trailing_silence >= self.silence_after_speech)
            or length >= self.max_length
        )
