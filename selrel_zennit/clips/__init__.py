"""Videos in and out: reading, cutting, resizing, writing. NumPy, OpenCV and PyAV alone."""
