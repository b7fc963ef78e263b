"""Mean and variance of more values than fit in memory: counts, means and sums of squared deviations, merged in float64."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Moments:
    """The moments of all values added so far.

    Attributes:
      count: of the values (of each channel).
      mean: float64, a number or `[channels]`.
      squares: the sum of squared deviations from the mean, of the same shape.
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, count: int, mean: np.ndarray | float, squares: np.ndarray | float) -> None:
        """Merges the moments of other values (Chan, Golub, LeVeque 1979); variances are never averaged."""
        if count == 0:
            return
        total = self.count + count
        delta = np.asarray(mean, np.float64) - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + np.asarray(squares, np.float64) + np.square(delta) * (self.count * (count / total))
        self.count = total

    def variance(self, unbiased: bool) -> np.ndarray | float:
        """`squares` divided by the count, or by the count less one."""
        return self.squares / max(self.count - unbiased, 1)
