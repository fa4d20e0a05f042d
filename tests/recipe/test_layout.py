"""Which passes run as one batch, by what a recipe says and whether steps are recorded."""

from __future__ import annotations

import pytest

from ltxgen.config.recipe import Runtime
from ltxgen.models.transformer.passes import BATCHED_TOKENS
from ltxgen.recipe.layout import batched_tokens


@pytest.mark.parametrize(
    ("runtime", "sharded", "limit"),
    [
        (Runtime(), False, None),
        (Runtime(), True, BATCHED_TOKENS),
        (Runtime(graphs="never"), False, BATCHED_TOKENS),
        (Runtime(batch_passes="never"), True, 0),
    ],
)
def test_passes_that_the_host_launches_join_sooner(runtime: Runtime, sharded: bool, limit: int | None):
    assert batched_tokens(runtime, sharded=sharded) == limit


def test_a_batch_that_is_asked_for_has_any_size():
    limit = batched_tokens(Runtime(batch_passes="always"), sharded=False)
    assert limit is not None
    assert limit > 10**9
