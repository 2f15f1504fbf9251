"""What a row gives: samples of every contender, and how they stand to the row's targets. Plain data, as JSON too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal, Self

OVERCOAT = "overcoat"


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured.

    Attributes:
        key: its name in samples.
        title: its name for people.
        unit: its unit.
        digits: how many decimals are shown.
    """

    key: str
    title: str
    unit: str
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of Overcoat.

    Attributes:
        text: the target in words.
        metric: the metric's key.
        kind: `ratio` and `difference` compare `ours` with `theirs`, round by round; `value` looks at `ours` alone.
        sense: whether the figure must be at least or at most `limit`.
        limit: the target; None for a figure that nothing is asked of.
        ours: the contender meant.
        theirs: whom it is compared with.
        unit: the unit of the figure.
    """

    text: str
    metric: str
    kind: Literal["ratio", "difference", "value"]
    sense: Literal["least", "most"]
    limit: float | None
    ours: str = OVERCOAT
    theirs: str = ""
    unit: str = "×"

    @property
    def limit_text(self) -> str:
        """The target, as it is shown."""
        if self.limit is None:
            return "–"
        return f"{'≥' if self.sense == 'least' else '≤'} {self.limit:g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the benchmark.

    Attributes:
        name: its name on the command line.
        title: its title.
        how: what exactly was done.
        metrics: what was measured.
        targets: what is asked for.
        samples: contender to metric to one value a round.
        leaves_out: contender to what it does not do.
        unavailable: why it could not be measured, or "".
        seconds: how long one timed measurement took.
        date: when it was measured (UTC).
    """

    name: str
    title: str
    how: str
    metrics: tuple[Metric, ...]
    targets: tuple[Target, ...]
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    leaves_out: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""
    seconds: float = 0.0
    date: str = ""

    def median(self, contender: str, metric: str) -> float:
        """Return a contender's median."""
        return median(self.samples[contender][metric])

    def figures(self, target: Target) -> list[float]:
        """Return what a target speaks of, one figure a round."""
        ours = self.samples[target.ours][target.metric]
        if target.kind == "value":
            return ours
        pairs = list(zip(ours, self.samples[target.theirs][target.metric], strict=True))
        if target.kind == "ratio":
            return [mine / other for mine, other in pairs]
        return [mine - other for mine, other in pairs]

    def is_met(self, target: Target) -> bool:
        """Tell whether the median of the figures meets a target; one without a limit is met."""
        if target.limit is None:
            return True
        figure = median(self.figures(target))
        return figure >= target.limit if target.sense == "least" else figure <= target.limit

    def figure_text(self, target: Target) -> str:
        """Return the median of a target's figures, with the least and the greatest of them."""
        figures = self.figures(target)
        return f"{median(figures):.2f} {target.unit} ({min(figures):.2f} to {max(figures):.2f})"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Make it from plain data."""
        metrics = tuple(Metric(**metric) for metric in data["metrics"])
        targets = tuple(Target(**target) for target in data["targets"])
        return cls(**data | {"metrics": metrics, "targets": targets})
