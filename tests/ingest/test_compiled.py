"""What the compiled functions do for columns of numbers is what slow code says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ingest import compiled

pytestmark = pytest.mark.skipif(compiled.compiled() is None, reason="nothing was compiled (no C compiler)")


@given(text=st.lists(st.sampled_from([b"\n", b"a", b"\xff", b"\n\n", b"x" * 300, b"\n" * 5000])).map(b"".join))
def test_newlines_are_all_counted(text):
    assert compiled.count_newlines(text) == text.count(b"\n")
    assert compiled.count_newlines(memoryview(text)[1:]) == text[1:].count(b"\n")


@given(values=arrays.arrays(np.int32, st.integers(1, 400), elements=st.integers(0, 999)))
def test_values_are_numbered_in_their_order(values):
    found = compiled.number_values(values, 1000)
    assert found is not None
    met, codes = found
    assert met.tolist() == sorted(set(values.tolist()))
    assert (met[codes] == values).all()
    assert codes.dtype == (np.uint8 if len(met) <= 256 else np.uint16)


@pytest.mark.parametrize(("distinct", "is_numbered"), [(256, True), (257, True), (65_536, True), (65_537, False)])
def test_more_values_than_sixteen_bits_tell_apart_are_not_numbered(distinct, is_numbered):
    values = np.random.default_rng(1).permutation(np.arange(distinct, dtype=np.int32))
    found = compiled.number_values(values, distinct)
    assert (found is not None) == is_numbered
    if found is not None:
        assert (found[1] == values).all()


@given(numbers=st.lists(st.integers(0, 2**18 - 1), min_size=1, max_size=60))
def test_every_hundredth_is_found_and_is_exact(numbers):
    values = (np.array(numbers) / 100).astype(np.float32)
    found = compiled.hundredths(values)
    assert found is not None
    assert found.tolist() == numbers


@given(value=st.floats(width=32))
def test_what_is_called_hundredths_gives_the_very_value_back(value):
    found = compiled.hundredths(np.array([1.5, value], np.float32))
    if found is not None:
        assert (found / 100).astype(np.float32).tobytes() == np.array([1.5, value], np.float32).tobytes()


@pytest.mark.parametrize("value", [-0.0, -1.0, float("nan"), float("inf"), 0.005, 1e9])
def test_what_is_no_hundredth_is_not_taken_for_one(value):
    assert compiled.hundredths(np.array([1.5, value], np.float32)) is None
