"""A small network for small clips, and the generator's clips that fit it."""

import json
import os
import signal

from safetensors.torch import save_file

import selrel_zennit as sr
from selrel_zennit.models.small3d import Small3D
from selrel_zennit.models.weights import CARD
from selrel_zennit.synthetic import CLASSES

SPEC = sr.ClipSpec(frames=8, short_side=32, crop=32, mean=(110.0, 110.0, 110.0), std=(60.0, 60.0, 60.0))
SOURCE = "synthetic:frames=8,height=32,width=32,train=0,validation=0,test=4"


def small(num_classes=8):
    """Small3D of a quarter of its width."""
    return Small3D(num_classes, width=4, spec=SPEC)


class Deadly(Small3D):
    """Kills its process on clips darker than DEADLY_BELOW: always, or while the file DEADLY is not there."""

    def forward(self, clip):
        """Return the logits, or do not come back."""
        flag = os.environ["DEADLY"]
        if float(clip.mean()) < float(os.environ["DEADLY_BELOW"]) and (flag == "always" or not os.path.exists(flag)):
            if flag != "always":
                open(flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(clip)


def deadly(num_classes=8):
    """The same network, Deadly."""
    return Deadly(num_classes, width=4, spec=SPEC)


def write_weights(path):
    """Write random weights for it, as `selrel train` writes them."""
    network = small()
    network.reset_parameters(0)
    said = json.dumps({"model": "small3d", "spec": SPEC.to_dict(), "classes": CLASSES})
    save_file(network.state_dict(), path, metadata={CARD: said})
    return path
