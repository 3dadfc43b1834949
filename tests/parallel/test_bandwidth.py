"""Bus bandwidth: the speed of a port, whatever the world's size."""

import math
from fractions import Fraction

import pytest

from gradbook.parallel import bandwidth, cost


def test_the_bus_bandwidth_is_the_speed_of_a_port_whatever_the_world_s_size():
    for p in (2, 3, 8, 64):
        seconds = cost.ring(p).seconds(6e9, 0.0, 1 / 25e9)
        assert bandwidth.bus_bandwidth(p, 6e9, seconds) == pytest.approx(25e9, rel=1e-12)
    assert bandwidth.bus_bandwidth(4, 8, 2) == 6
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="seconds"):
            bandwidth.bus_bandwidth(4, 8, bad)
    with pytest.raises(ValueError, match="size"):
        bandwidth.bus_bandwidth(4, -8, 1)


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_the_factor_is_what_a_ring_sends(p):
    assert bandwidth.bus_factor(p) == Fraction(2 * (p - 1), p) == cost.ring(p).sent
    with pytest.raises(ValueError, match="world_size"):
        bandwidth.bus_factor(1 - p)
