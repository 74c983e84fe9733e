from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import Network
from eschedule.cloud.ports import leads_out, ways_out

networks = st.lists(
    st.builds(
        lambda has_nat, physical, gateway: Network(
            uuid="n",
            namespace="system",
            name="n",
            vni=1,
            mtu=1450,
            cidr="10.0.0.0/24",
            has_nat=has_nat,
            physical=physical,
            gateway=gateway,
            created_at="",
        ),
        st.booleans(),
        st.none() | st.just("lan"),
        st.none() | st.just("10.0.0.1"),
    ),
    max_size=4,
)


@given(networks)
def test_a_guest_has_one_more_default_route_at_most_and_none_where_something_leads_out(found: list[Network]) -> None:
    ways = ways_out(found)
    assert len(ways) == len(found)
    assert sum(ways) <= 1
    if any(map(leads_out, found)):
        assert not any(ways)
    else:
        assert any(ways) == any(network.gateway is not None for network in found)
    assert all(network.gateway is not None for network, is_way in zip(found, ways, strict=True) if is_way)
