"""Tokens to text: the one decoder, for scoring and for devices, which have no sentencepiece."""

import codecs
from collections.abc import Sequence
from itertools import groupby

_SPACE = "\u2581"  # begins a word
_UNKNOWN = {"<unk>": " \u2047 "}  # as sentencepiece shows it
_BYTES = {f"<0x{value:02X}>": value for value in range(256)}


def _one_mark_for_each_byte(error: UnicodeDecodeError) -> tuple[str, int]:
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("twopass_kd.data.detokenize", _one_mark_for_each_byte)


def detokenize(pieces: Sequence[str], is_final: bool = True) -> str:
    """The text that BPE pieces spell, as sentencepiece's `decode` gives it.

    A piece that begins a word begins with U+2581. Pieces in a row from `<0x00>` to `<0xFF>` are UTF-8; each byte that
    is not becomes U+FFFD.

    Args:
      is_final: False where more pieces may come: a character of which only some bytes are there is left out.
    """
    runs = [(is_byte, list(run)) for is_byte, run in groupby(pieces, key=_BYTES.__contains__)]
    text = ""
    for number, (is_byte, run) in enumerate(runs, start=1):
        if is_byte:
            data = bytes(_BYTES[piece] for piece in run)
            text += codecs.utf_8_decode(data, "twopass_kd.data.detokenize", is_final or number < len(runs))[0]
        else:
            spelt = "".join(_UNKNOWN.get(piece, piece) for piece in run)
            text += (spelt if text else spelt.lstrip(_SPACE)).replace(_SPACE, " ")
    return text
