"""What the simulated sbatch, squeue and scancel do: simulation.py FOLDER COMMAND ARGUMENTS ..."""

import fcntl
import json
import sys
import time
from pathlib import Path

folder, name, *arguments = Path(sys.argv[1]), *sys.argv[2:]
with (folder / "calls").open("a") as calls:
    calls.write(" ".join([name, *arguments]) + "\n")
lock = (folder / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)


def fail(text: str) -> None:
    sys.exit(f"{name}: error: {text}")


behaviour_file = folder / f"{name}.behaviour"
behaviour = behaviour_file.read_text() if behaviour_file.is_file() else ""
if "once" in behaviour:
    behaviour_file.unlink()
jobs = json.loads((folder / "jobs.json").read_text())

if behaviour.startswith("silent") and not behaviour.startswith("silent-after"):
    fail("Socket timed out on send/recv operation")
if behaviour.startswith("hangs"):
    (folder / f"{name}.hanging").write_text("")
    time.sleep(3 if "briefly" in behaviour else 30)
if behaviour.startswith("refuses"):
    fail("Batch job submission failed: Invalid account or account/partition combination")

if name == "sbatch":
    lines = Path(arguments[0]).read_text().splitlines()
    flags = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")]
    given = dict(flag.split("=", 1) for flag in flags if "=" in flag)
    array = max([int(job.split("_")[0]) for job in jobs], default=0) + 1
    count = int(given["array"].split("%")[0].split("-")[1]) + 1 if "array" in given else 0
    after = given.get("dependency", "")
    waits_for = jobs.get(after.removeprefix("afterok:"), {"state": "PENDING"})
    never = waits_for["state"] not in ("PENDING", "RUNNING", "COMPLETED")
    for one in [f"{array}_{n}" for n in range(count)] or [str(array)]:
        jobs[one] = {"name": given["job-name"], "state": "PENDING", "after": after, "flags": flags}
        if never:
            jobs[one].update(state="CANCELLED", reason="DependencyNeverSatisfied")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    if behaviour.startswith("silent-after"):
        fail("Batch job submission failed: Socket timed out on send/recv operation")
    if behaviour.startswith("slow"):
        (folder / f"{name}.hanging").write_text("")
        fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(3 if "briefly" in behaviour else 30)
    print(f"Submitted batch job {array}")
elif name == "squeue":
    for one, job in jobs.items():
        end = "2020-01-01T00:00:00" if job["state"] == "COMPLETING" else "2100-01-01T00:00:00"
        reason = job.get("reason") or "None"
        print("|".join([one, job["state"], reason, "n1", end, "4000M", job["name"]]))
elif name == "scancel":
    for one, job in jobs.items():
        if job["state"] in ("PENDING", "RUNNING") and {one, one.split("_")[0]} & set(arguments):
            job["state"] = "CANCELLED"
    (folder / "jobs.json").write_text(json.dumps(jobs))
