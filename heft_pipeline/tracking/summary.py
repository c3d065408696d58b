"""What is said in the terminal of runs that were sent."""

from dataclasses import dataclass, field
from pathlib import Path

from heft_pipeline.tracking.follow import Event


@dataclass
class Summary:
    """Counts of what came of each run, the newest word on it.

    Attributes:
        folder: The sweep's folder, as the user would type it.
        events: The newest event of each run.
    """

    folder: Path
    events: dict[str, Event] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take an event."""
        self.events[event.run] = event

    @property
    def problems(self) -> dict[str, list[Event]]:
        """The events of runs that were not taken, by why."""
        found: dict[str, list[Event]] = {}
        for event in self.events.values():
            if event.status == "problem":
                found.setdefault(event.text, []).append(event)
        return found

    def lines(self) -> list[str]:
        """What to say: a line a tracker, and a line a distinct problem.

        Returns:
            Plain text; a line that tells of a problem begins with ``!``.
        """
        lines = []
        kinds = dict.fromkeys((e.tracker, e.mode) for e in self.events.values() if _taken(e))
        for tracker, mode in kinds:
            taken = [e for e in self.events.values() if _taken(e) and e.tracker == tracker]
            taken = [e for e in taken if e.mode == mode]
            unchanged = sum(e.status == "unchanged" for e in taken)
            count = _runs(len(taken)) + (f" ({unchanged} unchanged)" if unchanged else "")
            lines.append(f"{tracker}: {count}{self._where(mode, taken[-1].text)}")
        for text, events in self.problems.items():
            who = events[0].tracker or "tracking"
            lines.append(
                f"! {who} did not take {_runs(len(events))}: {text}. To send later: {self._again()}"
            )
        return lines

    def _where(self, mode: str, text: str) -> str:
        if mode == "online":
            return f" at {text.split('/runs/')[0]}"
        if mode == "offline":
            return (
                f" written offline. To send: wandb login, then\n  {self._again()} --mode online\n"
                f"  (or: wandb sync {self.folder}/runs/*/wandb/offline-run-*)"
            )
        return f"; tensorboard --logdir {self.folder / 'tensorboard'}"

    def _again(self) -> str:
        return f"python -m heft_pipeline.tracking {self.folder}"


def _taken(event: Event) -> bool:
    return event.status in ("sent", "unchanged")


def _runs(count: int) -> str:
    return f"{count} run" + ("s" if count != 1 else "")
