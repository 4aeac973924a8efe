"""TensorRT and TensorRT-RTX, natively: engines, device memory, one CUDA graph. Without torch."""
