"""What is read of the lines of Lhotse's manifests, and of which type it must be; Lhotse takes values of any type."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from twopass_kd.files.json_model import describe_problem


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True)


class SupervisionTimes(_Fields):
    start: float
    duration: float


class SourceFields(_Fields):
    type: str
    channels: list[int]
    source: str


class AudioFields(_Fields):
    sources: list[SourceFields]
    sampling_rate: int
    num_samples: int
    duration: float


class StoredFeatures(_Fields):
    type: str
    num_frames: int
    num_features: int
    frame_shift: float = 0.01
    sampling_rate: int
    start: float
    duration: float
    storage_type: str
    storage_path: str


class MonoCutFields(_Fields):
    id: str
    start: float
    duration: float
    channel: int
    supervisions: list[SupervisionTimes]
    features: StoredFeatures | None = None
    recording: AudioFields | None = None


class SupervisionFields(SupervisionTimes):
    id: str
    recording_id: str
    channel: int = 0


class RecordingFields(AudioFields):
    id: str


def find_problem(content: Any, fields: type[_Fields]) -> str | None:
    """Why the content of a line does not have those fields, e.g. "`start` ('0') must be a valid number"; else None."""
    try:
        fields.model_validate(content)
    except ValidationError as e:
        name, what = describe_problem(e)
        return f"{f'`{name}`' if name else 'it'} {what}"
    return None
