"""What an explanation is written as: pictures, pages, arrays. NumPy, OpenCV and PyAV alone."""
