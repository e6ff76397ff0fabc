"""The process that a case runs in: the guard first, then torch."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys

if __name__ == "__main__":
    guard, case, arguments = sys.argv[1:]
    ctypes.CDLL(guard, mode=ctypes.RTLD_GLOBAL)
    os.environ["DS_ACCELERATOR"] = "cpu"
    file, _, name = case.rpartition(":")
    cases = importlib.import_module(f"tests.fake_cuda.{file or 'cases'}")
    print(json.dumps(getattr(cases, name)(**json.loads(arguments))))
