"""Finds the audio files and transcript lines of a part of a corpus, wherever they lie in it. Links are followed."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lhotse.recipes.librispeech import parse_alignments
from lhotse.supervision import AlignmentItem

from twopass_kd.config.schema import ConfigError
from twopass_kd.files.write import printable

# What both libsndfile and Lhotse read; MP3 and Opus where libsndfile has them.
AUDIO_SUFFIXES = set(".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .snd .w64 .wav".split())
OTHER_AUDIO_SUFFIXES = set(
    ".3gp .aac .ac3 .alaw .amr .ape .avi .dts .gsm .m4a .m4b .mka .mkv .mov .mp2 .mp4 .nist .pcm .raw .shn .sph .spx"
    " .tta .ulaw .vox .webm .wma .wv".split()
)
TRANSCRIPT_SUFFIX = ".trans.txt"
ALIGNMENT_SUFFIX = ".alignment.txt"  # of LibriSpeech-Alignments, and of synthetic speech
MACOS_SHADOW = "._"  # macOS puts `._NAME` beside a file on a foreign disk; it holds icons and the like


class Line(NamedTuple):
    """A transcript line: where it is (`<file>:<line>`, from the part's folder), its text, why it is unusable or ""."""

    place: str
    text: str
    problem: str


@dataclass
class PartFiles:
    """What lies in a part's folder.

    audio: utterance id (the name without suffix) -> the files of that name.
    lines: utterance id -> its transcript lines.
    alignments: utterance id -> when its words are said, where an alignment file beside the transcripts says it.
    unreadable: transcript file, from the part's folder -> why nothing in it is used.
    others: all other files, and folders that are named like audio.
    remarks: (what was not read a second time, where), as account() prints it.
    """

    folder: Path
    audio: dict[str, list[Path]] = field(default_factory=dict)
    lines: dict[str, list[Line]] = field(default_factory=dict)
    alignments: dict[str, list[AlignmentItem]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    def inside(self, path: Path) -> str:
        """The path as seen from the part's folder, printable."""
        return printable(str(path.relative_to(self.folder)))


def utterance_id(name: str) -> str:
    """The form in which file names and ids in transcripts are compared: macOS writes accents as separate letters."""
    return unicodedata.normalize("NFC", name)


def transcript_text(text: str, normalization: str) -> str:
    """A transcript in LibriSpeech's form (upper case, single spaces) and in the config's `tokens.normalization`."""
    upper = unicodedata.normalize(normalization, text).upper()
    return " ".join(unicodedata.normalize(normalization, upper).split())


def _raise(error: OSError) -> None:
    raise ConfigError(f"`{error.filename}` must be a folder that can be read ({error.strerror}); mend its permissions")


def walk(root: Path, remarks: list[tuple[str, str]]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder from `root` downwards with the names of its folders and files; linked folders are entered too.

    A folder is read once: a link to one that contains the link, or that was read already, gets a line in `remarks`.

    Raises:
      ConfigError: a folder cannot be read.
    """
    read: dict[str, str] = {}  # real path of a folder -> the path that it was read by
    links = [str(root)]
    for link in links:  # which grows: folders of the part come before those that are linked
        for folder, folders, files in os.walk(link, onerror=_raise):
            real = os.path.realpath(folder)
            if real in read:
                remarks.append(("folder that is linked twice, read once", f"{folder} is {read[real]}"))
                folders.clear()
                continue
            read[real] = folder
            folders.sort()
            yield Path(folder), list(folders), files
            for name in [name for name in folders if os.path.islink(os.path.join(folder, name))]:
                folders.remove(name)
                path = os.path.join(folder, name)
                target = os.path.realpath(path)
                if os.path.commonpath([target, real]) == target:
                    remarks.append(("link to a folder that contains it, not entered", f"{path} is {target}"))
                else:
                    links.append(path)


def broken_link(path: Path) -> str | None:
    """What a link to nothing is a link to, as a reason; None where the path is none."""
    return f"broken link: {path} is {path.readlink()}" if path.is_symlink() and not path.exists() else None


def audio_files(root: Path, remarks: list[tuple[str, str]]) -> list[Path]:
    """All files below a folder whose suffix, in any case, is of an audio format, be it one that is read or not."""
    found = []
    for folder, _, files in walk(root, remarks):
        for path in (folder / name for name in files if not name.startswith(MACOS_SHADOW)):
            if path.suffix.lower() in AUDIO_SUFFIXES | OTHER_AUDIO_SUFFIXES:
                found.append(path)
            elif broken_link(path):
                remarks.append(("broken link", str(path)))
    return once(sorted(found), remarks)


def once(paths: Sequence[Path], remarks: list[tuple[str, str]]) -> list[Path]:
    """The paths without those that are links to a file that is among them already; these get a line in `remarks`."""
    first: dict[str, Path] = {}
    for path in paths:
        known = first.setdefault(os.path.realpath(path), path)
        if known is not path:
            remarks.append(("file that is linked twice, read once", f"{path} is {known}"))
    return list(first.values())


def find_part(folder: Path, normalization: str = "NFC") -> PartFiles:
    """All audio files and transcript lines below a part's folder.

    Args:
      normalization: of transcripts; see `transcript_text`.
    Raises:
      ConfigError: a folder cannot be read.
    """
    part = PartFiles(folder)
    paths = []
    for below, folders, files in walk(folder, part.remarks):
        paths += [below / name for name in files]
        part.others += [below / name for name in folders if Path(name).suffix.lower() in AUDIO_SUFFIXES]
    audio, transcripts = defaultdict(list), []
    for path in sorted(paths):
        if path.name.startswith(MACOS_SHADOW):
            part.remarks.append(("file that macOS puts beside others", str(path)))
        elif path.name.lower().endswith(TRANSCRIPT_SUFFIX):
            transcripts.append(path)
        elif path.name.lower().endswith(ALIGNMENT_SUFFIX):
            _read_alignments(path, part)
        elif path.suffix.lower() in AUDIO_SUFFIXES:
            audio[utterance_id(path.stem)].append(path)
        else:
            part.others.append(path)
    part.audio = {name: once(paths, part.remarks) if len(paths) > 1 else paths for name, paths in audio.items()}
    for path in once(transcripts, part.remarks):
        _read_transcript(path, part, normalization)
    return part


def _read_transcript(path: Path, part: PartFiles, normalization: str) -> None:
    """Add the lines of a transcript file, or the reason why it has none."""
    name = part.inside(path)
    try:
        if not path.is_file():
            raise FileNotFoundError(0, "not a file, or a broken link")
        data = path.read_bytes()
    except OSError as e:
        part.unreadable[name] = f"transcript file that cannot be read: {e.strerror}"
        return
    if b"\0" in data:
        part.unreadable[name] = "transcript file that is not UTF-8 text (UTF-16?): convert it to UTF-8"
        return
    for number, raw in enumerate(data.splitlines(), start=1):
        place, problem = f"{name}:{number}", ""
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            line = raw.decode("utf-8", "replace")
            problem = f"transcript is not UTF-8: {place}"
        utterance, *rest = line.removeprefix("\ufeff").split(maxsplit=1) or [""]
        if not utterance:
            continue
        text = transcript_text("".join(rest), normalization)
        problem = problem or ("" if text else f"empty transcript: {place}")
        part.lines.setdefault(utterance_id(utterance), []).append(Line(place, text, problem))


def _read_alignments(path: Path, part: PartFiles) -> None:
    """Add the words of an alignment file, which no training needs: a remark where it cannot be read."""
    try:
        for name, items in parse_alignments(path).items():
            part.alignments[utterance_id(name)] = [item for item in items if item.symbol]
    except (OSError, ValueError) as e:
        part.remarks.append((f"alignment file that cannot be read ({type(e).__name__})", str(path)))


def duplicate_ids(found: Mapping[str, PartFiles]) -> dict[str, str]:
    """Ids with more than one transcript line or more than one audio file, over all parts.

    Args:
      found: part -> what lies in it.
    Returns:
      id -> where the files and lines are.
    """
    files, lines = defaultdict(list), defaultdict(list)
    for part, there in found.items():
        for name, paths in there.audio.items():
            files[name] += [f"{part}/{there.inside(path)}" for path in paths]
        for name, rows in there.lines.items():
            lines[name] += [f"{part}/{row.place}" for row in rows]
    places: dict[str, list[str]] = defaultdict(list)
    for kind in (files, lines):
        for name, where in kind.items():
            if len(where) > 1:
                places[name].append(_first_two(where))
    return {name: ", ".join(where) for name, where in places.items()}


def _first_two(places: Sequence[str]) -> str:
    more = f" and {len(places) - 2} more" if len(places) > 2 else ""
    return f"{places[0]} and {places[1]}{more}"


def require_transcripts(part: str, files: PartFiles) -> None:
    """Raises ConfigError when a part has no transcript line; says what is there instead."""
    if files.lines or files.unreadable:
        return
    seen = [f"{sum(map(len, files.audio.values()))} audio files"]
    kinds = Counter(path.suffix or path.name for path in files.others)
    for kind, count in kinds.most_common(5):
        first = next(path for path in files.others if kind in (path.suffix, path.name))
        seen.append(f"{count} {printable(kind)} ({files.inside(first)})")
    if len(kinds) > 5:
        seen.append(f"{len(files.others) - sum(count for _, count in kinds.most_common(5))} others")
    raise ConfigError(
        f"part `{part}` must have transcripts, files *{TRANSCRIPT_SUFFIX} with lines of utterance id and text, but"
        f" {files.folder} has none; it has {', '.join(seen)}"
    )
