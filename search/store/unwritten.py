"""A store as it would be: what is written to it is kept in memory, and is read back from there."""

from __future__ import annotations

from search.store.objects import ObjectStorage


class Unwritten(ObjectStorage):
    """The objects of a store, for those who look at what would be done and must not do it.

    `objects` is read; what is put, created, removed or moved stays here.
    """

    def __init__(self, objects: ObjectStorage) -> None:
        self._objects = objects
        self.uri, self.name = objects.uri, objects.name
        self._changed: dict[str, bytes | None] = {}

    def under(self, prefix: str) -> Unwritten:
        """As of the store; what is written there is not seen from here."""
        return Unwritten(self._objects.under(prefix))

    @property
    def is_local(self) -> bool:
        """As of the store."""
        return self._objects.is_local

    def get(self, name: str) -> bytes | None:
        """The bytes of an object; None when it is absent."""
        return self._changed[name] if name in self._changed else self._objects.get(name)

    def put(self, name: str, content: bytes) -> None:
        """Write an object, over what is there."""
        self._changed[name] = content

    def create(self, name: str, content: bytes) -> bool:
        """Create an object if it is absent: False when another one is there already."""
        if self.get(name) is None:
            self._changed[name] = content
        return self.get(name) == content

    def delete(self, name: str) -> bool:
        """Remove an object: False where it was not there."""
        was_there = self.get(name) is not None
        self._changed[name] = None
        return was_there

    def move(self, source: str, target: str) -> bool:
        """Give an object another name: False when it is not there."""
        content = self.get(source)
        if content is None:
            return False
        self._changed[target], self._changed[source] = content, None
        return True

    def list(self, prefix: str) -> tuple[str, ...]:
        """The names of all objects under `prefix/`."""
        found = dict.fromkeys(self._objects.list(prefix), True)
        for name, content in self._changed.items():
            if name.startswith(f"{prefix}/"):
                found[name] = content is not None
        return tuple(name for name, is_there in found.items() if is_there)
