"""Digests of large arrays: every part counts."""

from __future__ import annotations

import numpy as np
import pytest

from tfkd import fingerprints


@pytest.mark.parametrize("place", [0, 2**19 - 1, 2**19, -1])
def test_each_number_of_an_array_of_several_parts_counts(place):
    # 4 MiB and eight bytes: two parts, the last of one number.
    numbers = np.zeros(2**19 + 1)
    changed = numbers.copy()
    changed[place] = 1.0
    assert fingerprints.digest(numbers) == fingerprints.digest(numbers.copy())
    assert fingerprints.digest(numbers) != fingerprints.digest(changed)
