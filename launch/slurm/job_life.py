"""A job's life: what SLURM's words for it mean to whoever submits, waits or cancels.

The states are those of ``squeue`` and ``sacct`` (their manuals, "JOB STATE CODES"). Each word is
listed; a word that is not listed means that nothing is known.
"""

from dataclasses import dataclass
from enum import StrEnum


class Life(StrEnum):
    """Where a job is in its life."""

    NOT_SUBMITTED = "not submitted"
    QUEUED = "queued"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"
    UNKNOWN = "unknown"


_QUEUED = (
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT", "POWER_UP_NODE",
)  # fmt: skip
_RUNNING = ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "EXPEDITING", "UPDATE_DB")
_ENDING = ("COMPLETING", "STAGE_OUT", "LAUNCH_FAILED", "RECONFIG_FAIL")
_ENDED = (
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
    "PREEMPTED", "DEADLINE", "REVOKED",
)  # fmt: skip

LIVES: dict[str, Life] = {
    **dict.fromkeys(_QUEUED, Life.QUEUED),
    **dict.fromkeys(_RUNNING, Life.RUNNING),
    **dict.fromkeys(_ENDING, Life.ENDING),
    **dict.fromkeys(_ENDED, Life.ENDED),
}

#: Ends that are the cluster's doing: the same job can be submitted again.
THE_CLUSTERS_DOING = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT", "REVOKED"})
#: Ends that are the node's doing: the job is better off on another one.
THE_NODES_DOING = frozenset({"NODE_FAIL", "BOOT_FAIL"})
#: Reasons of a cancelled job that nobody has cancelled: the job that it waits for did not succeed.
_NEVER_SATISFIED = frozenset({"DependencyNeverSatisfied", "Dependency"})


@dataclass(frozen=True)
class Job:
    """What is known of a job.

    Attributes:
        life: Where it is in its life.
        job_id: Its id, elements of arrays as ``ARRAY_INDEX``; None where it has none.
        state: SLURM's word, e.g. ``TIMEOUT``; empty where SLURM has forgotten the job.
        reason: Why it waits or has ended, in SLURM's words, or why nothing is known; or empty.
        exit_code: ``STATUS:SIGNAL`` where the cluster keeps accounts; or empty.
        node: Where it runs or ran; or empty.
        mem: The memory that it asked for, in SLURM's notation; or empty.
    """

    life: Life
    job_id: str | None = None
    state: str = ""
    reason: str = ""
    exit_code: str = ""
    node: str = ""
    mem: str = ""

    @property
    def alive(self) -> bool:
        """Whether SLURM will run it or is running it."""
        return self.life in (Life.QUEUED, Life.RUNNING)

    @property
    def over(self) -> bool:
        """Whether it will do nothing more: it has ended, is about to, or was never submitted."""
        return self.life in (Life.ENDING, Life.ENDED, Life.NOT_SUBMITTED)

    @property
    def cancelled_by_dependency(self) -> bool:
        """Whether SLURM cancelled it because the job that it waited for did not succeed."""
        return self.state == "CANCELLED" and self.reason in _NEVER_SATISFIED

    def said(self) -> str:
        """State, reason, exit code and node in words; ``SLURM has forgotten how`` without them."""
        if not self.state:
            return "SLURM has forgotten how"
        words = [self.state]
        if self.reason not in ("", "None"):
            words[0] += f" ({self.reason})"
        if self.exit_code:
            words.append(f"exit code {self.exit_code}")
        if self.node:
            words.append(f"on {self.node}")
        return ", ".join(words)
