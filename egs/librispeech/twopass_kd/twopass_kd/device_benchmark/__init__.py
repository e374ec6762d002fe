"""Stage 10's measurements: ours on PyTorch and onnxruntime beside sherpa-onnx, each in a process of its own.

`jobs.py` starts the processes; measure.py (speed, memory), decode_sets.py (words) and long_audio.py are the processes.
Those that measure onnxruntime import no torch, and those that measure sherpa-onnx no onnxruntime either.
"""
