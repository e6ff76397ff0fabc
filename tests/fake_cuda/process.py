"""The side of the tests: builds the device's guard and runs cases in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("guard.cpp")


@cache
def _guard() -> Path:
    """The guard, built once a process of tests. Skips the test where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the fake CUDA device with")
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    built = Path(tempfile.mkdtemp(prefix="fake-cuda-")) / "guard.so"
    subprocess.run(
        [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", str(SOURCE),
         "-o", str(built), f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"],
        check=True,
    )  # fmt: skip
    return built


def run_on_fake_cuda(case: str, **arguments: Any) -> Any:
    """What a function of `cases` returns for these arguments, by way of JSON; that of another file
    is named `file:function`.

    Raises AssertionError, with the end of what the process has said, where it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda.child", str(_guard()), case, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, f"{case}: {done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])
