"""What follows from the end of a job that has left no result: submit it again, or give it up."""

from collections.abc import Collection
from dataclasses import dataclass

from heft_pipeline.plan.stage_spec import StageSpec
from launch.slurm.job_life import THE_CLUSTERS_DOING, THE_NODES_DOING, Job, Life
from launch.slurm.job_notes import JobNote
from launch.slurm.limits import largest_memory, other_nodes
from launch.slurm.settings import SlurmSettings, megabytes


@dataclass(frozen=True)
class Again:
    """A stage is to be submitted again.

    Attributes:
        why: SLURM's word for how its last job ended, and what is asked for besides.
        attempt: How often it was submitted again because of the cluster, this time included.
        mem: The memory to ask for instead of what the settings say; None: what they say.
        exclude: The nodes to avoid.
    """

    why: str
    attempt: int = 0
    mem: str | None = None
    exclude: tuple[str, ...] = ()


def what_follows(
    stage: StageSpec, note: JobNote, job: Job, failed: Collection[str], settings: SlurmSettings
) -> Again | str:
    """Decide what follows from a job that is over and has left no result.

    Args:
        stage: The stage.
        note: What it was submitted as.
        job: What SLURM knows of the job.
        failed: The stages that have failed, by fingerprint.
        settings: The launcher's settings.

    Returns:
        How to submit it again, or why it has failed.
    """
    parent = stage.parent.fingerprint if stage.parent else None
    if parent in failed:
        return f"its parent stage failed ({stage.chain[-2].label})"
    if job.cancelled_by_dependency:
        return Again("its parent stage is submitted again", note.attempt, note.mem, note.exclude)
    if job.life is Life.NOT_SUBMITTED:
        return Again("its submission was interrupted", note.attempt, note.mem, note.exclude)
    how = f"job {job.job_id} ended without a result ({job.said()})"
    if job.state not in (*THE_CLUSTERS_DOING, "OUT_OF_MEMORY"):
        return how
    if note.attempt >= settings.max_requeues:
        return (
            f"{how}, as {note.attempt} jobs before it; a larger hydra.launcher.max_requeues tries "
            "more often, from its checkpoint"
        )
    return asked_again(note, job, settings)


def asked_again(note: JobNote, job: Job, settings: SlurmSettings) -> Again | str:
    """What to ask for after a job's end that was the cluster's doing, or that lacked memory.

    Args:
        note: What the stage was submitted as.
        job: What SLURM knows of the job.
        settings: The launcher's settings.

    Returns:
        How to submit it again; or why that is no use.
    """
    mem, exclude, why = note.mem, note.exclude, job.state
    if job.state == "OUT_OF_MEMORY":
        mem = more_memory(note.mem or settings.mem or job.mem, settings)
        if mem is None:
            how = f"job {job.job_id} ended without a result ({job.said()})"
            return f"{how}; set a larger hydra.launcher.mem, e.g. hydra.launcher.mem=64G"
        why += f", now with {mem}"
    without = {*exclude, job.node}
    if job.state in THE_NODES_DOING and job.node and other_nodes(settings.partition, without):
        exclude = tuple(sorted(without))
        why += f", now without {job.node}"
    return Again(why, note.attempt + 1, mem, exclude)


def more_memory(asked: str | None, settings: SlurmSettings) -> str | None:
    """The memory to ask for after too little.

    Args:
        asked: What was asked for, in SLURM's notation; None where that is not known.
        settings: The launcher's settings.

    Returns:
        ``hydra.launcher.mem_factor`` times as much, at most what the largest node has, in
        megabytes; None where that is no more.
    """
    before = megabytes(str(asked or ""))
    if not before or str(asked).endswith("c"):  # for each core; how many there are is not known
        return None
    after = before * settings.mem_factor
    most = largest_memory(settings.partition)
    if most is not None:
        after = min(after, most)
    return f"{int(after)}M" if int(after) > before else None
