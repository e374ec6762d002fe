"""What recognition on a device needs: numpy, onnxruntime, kaldi-native-fbank, soundfile, soxr.

Nothing here imports torch, k2 or lhotse, directly or indirectly; a test runs it where they are blocked.
"""
