"""A small network for small clips, as `selrel train` writes one."""

import pytest

from small_video_network import write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")
