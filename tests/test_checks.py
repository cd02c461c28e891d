"""Each check returns what it accepts, and says four things about what it refuses."""

from __future__ import annotations

import decimal
import fractions
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import checks

NUMBERS = [checks.finite, checks.positive, checks.non_negative, checks.fraction]
NOT_NUMBERS = [None, "1", True, np.bool_(True), [1], 1j, np.arange(2), decimal.Decimal(1)]


@pytest.mark.parametrize("check", NUMBERS)
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_not_a_number(check, value):
    with pytest.raises(TypeError, match="^`w`: expected a (finite )?number"):
        check("w", value)


@pytest.mark.parametrize("check", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_not_finite(check, value):
    with pytest.raises(ValueError, match="^`w`: expected a (finite )?number.*received"):
        check("w", value)


def test_messages_are_not_buried_in_a_traceback_of_autograph():
    def broken(x):
        raise checks.value_error("x", "nothing", 1)

    with pytest.raises(ValueError, match="^`x`: expected nothing, received 1"):
        tf.function(broken)(1.0)


@settings(max_examples=100)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_accepted_exactly_where_they_should_be(value):
    wanted = {
        checks.finite: True,
        checks.positive: value > 0,
        checks.non_negative: value >= 0,
        checks.fraction: 0 <= value <= 1,
    }
    for check, accepted in wanted.items():
        if accepted:
            assert check("w", value) is value
        else:
            with pytest.raises(ValueError, match="`w`"):
                check("w", value)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int8(1), fractions.Fraction(1, 2)])
def test_every_kind_of_real_number_is_accepted_unchanged(value):
    for check in NUMBERS:
        assert check("w", value) is value


@settings(max_examples=100)
@given(st.integers(-5, 5), st.sampled_from([int, np.int8, np.int64]))
def test_integers(value, kind):
    for check, minimum in ((checks.positive_int, 1), (checks.non_negative_int, 0)):
        if value >= minimum:
            found = check("n", kind(value))
            assert found == value and type(found) is int
        else:
            with pytest.raises(ValueError, match=f"`n`: expected an integer of at least {minimum}"):
                check("n", kind(value))


@pytest.mark.parametrize("value", [1.0, "1", None, True, np.float64(1), np.bool_(True)])
def test_not_an_integer(value):
    with pytest.raises(TypeError, match="`n`: expected an integer of at least 1"):
        checks.positive_int("n", value)


def test_one_of_names_the_choices_and_the_near_miss():
    assert checks.one_of("mode", "sum", ("sum", "mean")) == "sum"
    with pytest.raises(ValueError) as error:
        checks.one_of("mode", "maen", ("sum", "mean"))
    assert str(error.value) == (
        "`mode`: expected one of 'sum', 'mean', received 'maen' (str). Did you mean 'mean'?"
    )


def test_instance_and_function():
    assert checks.instance("x", 3, (int, str), "a number or text") == 3
    with pytest.raises(TypeError, match=r"`x`: expected a number or text, received None"):
        checks.instance("x", None, (int, str), "a number or text")
    assert checks.function("f", len) is len
    with pytest.raises(TypeError, match=r"`f`: expected a callable, received 3 \(int\)"):
        checks.function("f", 3)


def test_known_name_lists_near_matches_or_what_there_is():
    layers = [f"block{i}" for i in range(20)]
    assert checks.known_name("layer", "block7", layers, "the teacher") == "block7"
    with pytest.raises(ValueError, match="a layer of the teacher.*Did you mean .*'block7'"):
        checks.known_name("layer", "blok7", layers, "the teacher")
    with pytest.raises(ValueError, match="There are: 'block0', .* and 8 more"):
        checks.known_name("layer", "zzz", layers, "the teacher")
    with pytest.raises(ValueError, match="There are: 'a', 'b'\\.$"):
        checks.known_name("layer", "zzz", (n for n in "ab"), "the teacher")


def test_message_says_four_things():
    text = checks.message("t", "a number", "x", "Give one.")
    assert text == "`t`: expected a number, received 'x' (str). Give one."
    assert isinstance(checks.value_error("t", "a", 1), ValueError)
    assert isinstance(checks.type_error("t", "a", 1), TypeError)


def test_describe_shortens_long_values_and_shows_arrays_by_shape():
    assert checks.describe(np.zeros((2, 3), np.float32)) == (
        "ndarray of shape (2, 3) and dtype float32"
    )
    assert checks.describe(np.float32(2)).endswith("(float32)")
    text = checks.describe("x" * 1000)
    assert len(text) < 140 and text.endswith("... (str)")


class Odd:
    """A user's object: whatever its repr does, the message stands on one short line."""

    def __init__(self, text, shape=None):
        self.text, self.shape, self.dtype = text, shape, "float32"

    def __repr__(self):
        return self.text.strip()


def test_describe_of_objects_with_odd_reprs():
    assert checks.describe(Odd("one\n  two\n")) == "one two (Odd)"
    assert len(checks.describe(Odd("line\n" * 9999))) < 140
    assert checks.describe(Odd(None)) == "a value without a repr (Odd)"
    assert checks.describe(Odd("odd", shape=3)) == "a value without a repr (Odd)"


def test_names_are_listed_once_and_at_most_twelve():
    assert checks.listing(["a", "a", "b"]) == "There are: 'a', 'b'."
    assert checks.listing([]) == "There are: none."
    assert checks.listing(range(14)).endswith("'11' and 2 more.")
    assert checks.near_or_all("conv", ["conv1", "conv1"]) == "Did you mean 'conv1'?"
    assert checks.near_or_all("zzz", ["conv1"]) == "There are: 'conv1'."


def test_an_optional_value_may_be_none():
    assert checks.optional(checks.positive_int, "n", None) is None
    assert checks.optional(checks.one_of, "task", "b", ("a", "b")) == "b"
    with pytest.raises(ValueError, match="`n`: expected an integer of at least 1"):
        checks.optional(checks.positive_int, "n", 0)


def test_a_missing_package_is_named_with_its_extra():
    said = r"^Plots need matplotlib\. Install it with `pip install tfkd\[demo\]`\.$"
    with pytest.raises(ImportError, match=said), checks.needed("Plots need matplotlib", "demo"):
        raise ImportError("no module")
    with checks.needed("Plots need matplotlib", "demo"):
        import math as there
    assert there is math
