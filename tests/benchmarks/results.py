"""Results of measurements in a file."""

import json
from pathlib import Path
from typing import Any


class Kept:
    """Results in a file, written after each, so that an interrupted run can go on.

    Args:
        path: The file.
        head: What the results have in common.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.results: list[dict[str, Any]] = before.get("results", [])
        self.data = {**before, **head, "results": self.results}

    def add(self, result: dict[str, Any]) -> None:
        """Take a result, in place of an earlier one of the same kind."""
        kind = _kind(result)
        self.results[:] = [one for one in self.results if _kind(one) != kind]
        self.results.append(result)
        self.write()

    def has(self, **kind: Any) -> bool:
        """Whether there is a result of a kind."""
        return any(all(one[key] == value for key, value in kind.items()) for one in self.results)

    def write(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(f"  {json.dumps(result)}" for result in self.results)
        head = json.dumps({key: value for key, value in self.data.items() if key != "results"})
        self.path.write_text(f'{head[:-1]}, "results": [\n{rows}\n]}}\n', encoding="utf-8")


def _kind(result: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("network", "engine", "batch", "what", "block")
    return tuple(result.get(key) for key in keys)
