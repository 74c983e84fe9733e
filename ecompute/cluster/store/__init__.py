"""The store: documents in etcd. The only home of etcd3 and gRPC.

`Store` is the way in; `client` tells its rules, `watch` how a cache follows, `lease` what a lease
proves, `history` how a restored backup is found.
"""

from ecompute.cluster.store.cache import Change
from ecompute.cluster.store.client import ClusterStatus, Store
from ecompute.cluster.store.follow import Follow
from ecompute.cluster.store.lease import Lease, clock_s
from ecompute.cluster.store.shared import SharedStore
from ecompute.cluster.store.transactions import (
    MAX_OPERATIONS,
    Compare,
    Delete,
    DeletePrefix,
    Listing,
    Op,
    Put,
    Versioned,
    absent,
    absent_under,
    created_at,
    present,
    unchanged,
    unwritten_under,
)
from ecompute.cluster.store.watch import Watcher

__all__ = [
    "Store",
    "SharedStore",
    "ClusterStatus",
    "Versioned",
    "Listing",
    "Compare",
    "unchanged",
    "absent",
    "present",
    "absent_under",
    "unwritten_under",
    "created_at",
    "Op",
    "Put",
    "Delete",
    "DeletePrefix",
    "MAX_OPERATIONS",
    "Lease",
    "clock_s",
    "Watcher",
    "Follow",
    "Change",
]
