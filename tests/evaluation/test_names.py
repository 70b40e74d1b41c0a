"""Public names of the evaluation: all of them exist, and importing the package needs torch alone."""

import subprocess
import sys

import pytest

from ibreg import evaluation


@pytest.mark.parametrize("name", evaluation.__all__)
def test_a_public_name_is_a_documented_function(name):
    function = getattr(evaluation, name)
    assert callable(function)
    assert function.__name__ == name
    assert function.__doc__
    assert name in dir(evaluation)


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match=r"'ibreg\.evaluation' has no attribute 'accuracies'"):
        evaluation.accuracies  # noqa: B018


def test_the_import_is_light():
    code = (
        "import sys, ibreg.evaluation; "
        "assert not {'scipy', 'sklearn', 'torchmetrics', 'matplotlib'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
