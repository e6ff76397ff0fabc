"""What a job looks for first on the cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from search.launch.submission.arrival import absent, lacking_packages, lacking_variables
from search.launch.submission.wheel import this_distribution

ROOT = Path(__file__).parents[4]


def test_here_is_all_that_ranksweep_needs() -> None:
    assert lacking_packages(this_distribution().requires, ">=3.11") == ""


def test_packages_that_are_absent_or_of_another_version_are_named_on_one_line() -> None:
    told = lacking_packages(["ray>=99", "numpy>=1", "no-such-package<2"], ">=3.11")
    assert "ray>=99 (it has 2." in told
    assert "no-such-package<2" in told
    assert "numpy" not in told
    assert "\n" not in told
    assert "is not >=99, which ranksweep needs" in lacking_packages([], ">=99")


def test_a_python_without_ray_is_told_as_such() -> None:
    code = (
        "from search.launch.submission.arrival import lacking_packages; "
        "print(lacking_packages(['ray>=2'], '>=3.11'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "has no Ray" in done.stdout


def test_a_variable_that_the_cluster_lacks_is_named_with_what_it_is_for() -> None:
    required = {"MLFLOW_TRACKING_URI": "MLflow", "RANKSWEEP_STORE": "the store"}
    assert lacking_variables(required, dict.fromkeys(required, "set")) == ""
    told = lacking_variables(required, {"MLFLOW_TRACKING_URI": "", "RANKSWEEP_STORE": "set"})
    assert "lacks MLFLOW_TRACKING_URI (MLflow);" in told
    assert "RANKSWEEP_STORE" not in told
    assert list(absent(["A", "B"], {"A": "set"})) == ["B"]
