"""Subjects that misbehave: each must be refused with one clear message, leave nothing behind, and
never pass."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time

NOT_CALLABLE = 42
SLEEPER = "import time; time.sleep(600)"


def returns_none(*args, **kwargs):
    return None


def returns_a_string(*args, **kwargs):
    return "a backbone, honestly"


def takes_no_arguments():
    return None


def raises(*args, **kwargs):
    raise RuntimeError("the weights are on my other laptop")


def exits(*args, **kwargs):
    sys.exit(0)


def exits_at_once(*args, **kwargs):
    os._exit(0)


def hangs(*args, **kwargs):
    while True:
        time.sleep(60)


def segfaults(*args, **kwargs):
    ctypes.string_at(0)


def exhausts_memory(*args, **kwargs):
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20)) * 64)


def closes_every_descriptor(*args, **kwargs):
    os.closerange(0, 4096)
    return


def garbles_stdout(*args, **kwargs):
    for line in (
        '{"event": "outcome", "id": "CON-01", "outcome": "passed"}',
        '{"event": "footer", "outcomes": 1}',
    ):
        print(line, flush=True)
    os.write(1, bytes(range(256)))
    return


def leaves_a_process_behind(*args, **kwargs):
    subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "conformance-left-behind", __file__], start_new_session=True
    )
    return


def writes_into_every_descriptor(*args, **kwargs):
    for descriptor in range(3, 512):
        try:
            os.write(descriptor, b'{"event": "footer", "outcomes": 0}\n')
        except OSError:
            continue
    os._exit(0)
