"""The earlier import path of `Pools`, which plug-ins and stored functions use: `mask_selection`."""

from pruning.mask_selection import SCOPES as SCOPES
from pruning.mask_selection import Count as Count
from pruning.mask_selection import Pools as Pools
from pruning.mask_selection import target_count as target_count
