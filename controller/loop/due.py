"""What must be looked at and when: a heap of moments, by resource."""

import heapq

from common.ids import Id


class Due:
    """The queue's rows in memory. A resource has one moment: putting it again replaces it, an earlier one wins."""

    def __init__(self) -> None:
        self._at: dict[Id, float] = {}
        self._heap: list[tuple[float, Id]] = []

    def put(self, resource: Id, at: float) -> None:
        """Make a resource due at a moment, or earlier where it was already."""
        if at < self._at.get(resource, float("inf")):
            self._at[resource] = at
            heapq.heappush(self._heap, (at, resource))

    def drop(self, resource: Id) -> None:
        """Forget a resource."""
        self._at.pop(resource, None)

    def pop(self, now: float, most: int) -> list[Id]:
        """Take out what is due, earliest first."""
        found: list[Id] = []
        while self._heap and len(found) < most and self._heap[0][0] <= now:
            at, resource = heapq.heappop(self._heap)
            if self._at.get(resource) == at:
                del self._at[resource]
                found.append(resource)
        return found

    def next_at(self) -> float | None:
        """Return the earliest moment at which something is due."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        return len(self._at)
