"""A trained model for devices: ONNX (float32 and int8), TorchScript, safetensors; each checked against the model."""


class ExportError(ValueError):
    """An exported file that does not do what the model does; says which and by how much."""
