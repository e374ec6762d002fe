"""What recognition on a device needs: numpy, onnxruntime, soundfile, soxr.

Nothing here but torch_runtime, which is imported for a checkpoint only, imports torch, k2 or lhotse, directly or
indirectly; a test runs it where they are blocked.
"""
