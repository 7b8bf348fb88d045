"""The one way to get DeepSpeed, made safe to start after a start that was killed."""

from __future__ import annotations

import os
import warnings
from types import ModuleType


def load_deepspeed(device_type: str) -> ModuleType:
    """The module, for engines on ``cpu`` or ``cuda``; call this before anything else touches DeepSpeed.

    DeepSpeed 0.19 compiles an extension for inference on CPUs (deepspeed_shm_comm) at its first start, which training
    never calls. A start that is killed while it compiles leaves a lock file, and every later start waits for it
    without end. So the extension is marked as not available, and is neither compiled nor waited for.
    """
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    import deepspeed  # not at the top: it probes compilers and reads DS_ACCELERATOR when it is imported

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It calls torch's collectives by the names that they had before 2.13, and each rank would say so at each of them.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed
