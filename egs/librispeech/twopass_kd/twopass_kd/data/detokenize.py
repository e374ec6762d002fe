"""Tokens to text: the one decoder, for scoring and for devices, which have no sentencepiece."""

import codecs
import re
from collections.abc import Sequence
from itertools import groupby

_SPACE = "\u2581"  # begins a word
_UNKNOWN = {"<unk>": " \u2047 "}  # as sentencepiece shows it
_BYTE = re.compile("<0x[0-9A-F]{2}>")


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
    runs = [(is_byte, list(run)) for is_byte, run in groupby(pieces, key=_is_byte)]
    text = ""
    for number, (is_byte, run) in enumerate(runs, start=1):
        if is_byte:
            data = bytes(int(piece[3:5], 16) for piece in run)
            text += codecs.utf_8_decode(data, "twopass_kd.data.detokenize", is_final or number < len(runs))[0]
        else:
            spelt = "".join(_UNKNOWN.get(piece, piece) for piece in run)
            text += (spelt if text else spelt.lstrip(_SPACE)).replace(_SPACE, " ")
    return text


def _is_byte(piece: str) -> bool:
    return _BYTE.fullmatch(piece) is not None
