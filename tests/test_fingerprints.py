"""Digests of large arrays, of which every part counts, and structures of models."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

from tfkd import fingerprints

L = keras.layers


@pytest.mark.parametrize("place", [0, 2**19 - 1, 2**19, -1])
def test_each_number_of_an_array_of_several_parts_counts(place):
    # 4 MiB and eight bytes: two parts, the last of one number.
    numbers = np.zeros(2**19 + 1)
    changed = numbers.copy()
    changed[place] = 1.0
    assert fingerprints.digest(numbers) == fingerprints.digest(numbers.copy())
    assert fingerprints.digest(numbers) != fingerprints.digest(changed)


def test_structures_differ_by_layers_shapes_and_connections_and_not_by_names():
    def net(activation="relu", first=4, back=False, names=("a", "b")):
        x = keras.Input((4,))
        y = L.Dense(first, activation, name=names[0])(x)
        z = L.Dense(first, name=names[1])(y)
        return keras.Model(x, L.Add()([z, y if back else z]))

    known = fingerprints.structure(net())
    assert known == fingerprints.structure(net(names=("relu", "tanh")))
    others = [net("tanh"), net(first=5), net(back=True)]
    assert len({known, *map(fingerprints.structure, others)}) == 4
