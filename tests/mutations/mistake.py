"""A mistake: a text of the package, and what stands there instead."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A few lines of one file, replaced.

    Args:
        name: What was done wrong, in words.
        file: The file, in `reparam/`.
        before: What stands there now, exactly once.
        after: What stands there with the mistake.
    """

    name: str
    file: str
    before: str
    after: str

    def applied(self, source: str) -> str:
        """The source with the mistake.

        Raises:
            ValueError: The text is not there exactly once: the patch needs an update.
        """
        count = source.count(self.before)
        if count != 1:
            raise ValueError(
                f"the mistake {self.name!r} does not apply: its text stands {count} times in "
                f"reparam/{self.file}, not once\n{self.before}"
            )
        return source.replace(self.before, self.after)
