"""Interventions belong to a block, a layer and a thread."""

import threading

import pytest
from torch import nn

from ibreg.layers.intervention import intervening, intervention_on


def test_the_innermost_block_with_the_layer_takes_effect():
    first, second = nn.Identity(), nn.Identity()
    assert intervention_on(first) is None
    with intervening({first: "outer", second: "other"}):
        with intervening({first: "inner"}):
            assert (intervention_on(first), intervention_on(second)) == ("inner", "other")
        assert intervention_on(first) == "outer"
    assert intervention_on(first) is None


def test_an_error_ends_the_block():
    layer = nn.Identity()
    with pytest.raises(KeyError), intervening({layer: 1}):
        raise KeyError
    assert intervention_on(layer) is None


def test_other_threads_have_their_own_blocks():
    layer, seen = nn.Identity(), []
    with intervening({layer: 1}):
        thread = threading.Thread(target=lambda: seen.append(intervention_on(layer)))
        thread.start()
        thread.join()
    assert seen == [None]
