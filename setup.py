"""The compiled parts; all else about the package stands in pyproject.toml.

One build of the same file for each kind of processor: trainables/layers/compiled.py takes the best
that can run. Each may fail, for want of a compiler or on other processors; torch's own operations
then do the work.
"""

from setuptools import Extension, setup

BUILDS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"],
}

setup(
    ext_modules=[
        Extension(
            f"trainables.layers._low_rank_{name}",
            sources=["trainables/layers/low_rank.c"],
            extra_compile_args=["-O3", "-fopenmp", *flags],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
        for name, flags in BUILDS.items()
    ]
)
