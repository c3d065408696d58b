"""What the terminal says about runs that were sent."""

from dataclasses import dataclass, field
from pathlib import Path

from heft_pipeline.tracking.follow import Event


@dataclass
class Summary:
    """Counts what became of each run, according to its newest event.

    Attributes:
        folder: The sweep's folder, as the user would type it.
        events: The newest event of each run, by name.
    """

    folder: Path
    events: dict[str, Event] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Replace a run's event."""
        self.events[event.run] = event

    @property
    def problems(self) -> dict[str, list[Event]]:
        """The events of runs that were not accepted, grouped by reason."""
        found: dict[str, list[Event]] = {}
        for event in self.events.values():
            if event.status == "problem":
                found.setdefault(event.text, []).append(event)
        return found

    def lines(self) -> list[str]:
        """The summary: a line for each tracker, and one for each distinct problem.

        Returns:
            Plain text; a line about a problem begins with ``!``.
        """
        lines = []
        kinds = dict.fromkeys((e.tracker, e.mode) for e in self.events.values() if _accepted(e))
        for tracker, mode in kinds:
            accepted = [e for e in self.events.values() if _accepted(e) and e.tracker == tracker]
            accepted = [e for e in accepted if e.mode == mode]
            unchanged = sum(e.status == "unchanged" for e in accepted)
            count = _runs(len(accepted)) + (f" ({unchanged} unchanged)" if unchanged else "")
            lines.append(f"{tracker}: {count}{accepted[-1].see}")
        for text, events in self.problems.items():
            who = events[0].tracker or "tracking"
            lines.append(
                f"! {who} did not accept {_runs(len(events))}: {text}. "
                f"To send later: python -m heft_pipeline.tracking {self.folder}"
            )
        return lines


def _accepted(event: Event) -> bool:
    return event.status in ("sent", "unchanged")


def _runs(count: int) -> str:
    return f"{count} run" + ("s" if count != 1 else "")
