"""How fast a training goes: told once after its first batches, and beside its progress bar."""

import logging
import time

logger = logging.getLogger(__name__)

_WARMING = 4  # batches of checks and compilation
_TELLING = 2.0  # seconds of steps by which an epoch is told
_BETWEEN = 1.0  # seconds between two looks at the bar
_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


class Pace:
    """Cells per second, counted from the beginning of an epoch on.

    Parameters
    ----------
    n_batches
        Batches of an epoch.
    batch_size
        Cells of a batch.
    """

    def __init__(self, *, n_batches: int, batch_size: int) -> None:
        self.n_batches, self.batch_size = n_batches, batch_size
        self._warming, self._told = _WARMING, False
        self.begin()

    def begin(self) -> None:
        """Begin an epoch."""
        self._n, self._start = 0, time.perf_counter()
        self._looked = self._last = self._start

    @property
    def cells_per_second(self) -> float:
        """Cells per second up to the last batch; 0 before the first ones."""
        return self._n * self.batch_size / max(1e-9, self._last - self._start)

    def take(self, n_batches: int = 1, *, epochs_left: int) -> bool:
        """Count batches, and tell once how long epochs take.

        Returns
        -------
        Whether it is time to look at the bar.
        """
        self._n += n_batches
        if self._warming > 0:
            self._warming -= n_batches
            self.begin()
            return False
        now = self._last = time.perf_counter()
        if not self._told and now - self._start >= _TELLING:
            self._told = True
            self._tell(epochs_left)
        is_time = now - self._looked >= _BETWEEN
        self._looked = now if is_time else self._looked
        return is_time

    def _tell(self, epochs_left: int) -> None:
        rate = self.cells_per_second
        seconds = self.n_batches * self.batch_size / rate
        logger.info(
            "%.0f cells per second: an epoch takes about %s, all %d up to %s.",
            *(rate, in_words(seconds), epochs_left, in_words(epochs_left * seconds)),
        )


def in_words(seconds: float) -> str:
    """Return a time in the unit that suits it.

    Examples
    --------
    >>> in_words(3.21), in_words(90), in_words(7200)
    ('3.2 s', '1.5 min', '2.0 h')
    """
    size, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{seconds / size:.1f} {unit}"
