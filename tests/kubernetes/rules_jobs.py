"""Rules of the load test's jobs: they end, once, and master and workers fit each other."""

from tests.kubernetes.rendering import Doc, find, of_kind, title


def jobs_end(docs: list[Doc]) -> list[str]:
    problems = []
    for doc in of_kind(docs, "Job"):
        spec = doc["spec"]
        if spec.get("backoffLimit") != 0:
            problems.append(f"{title(doc)}: spec.backoffLimit: must be 0, a load is not repeated")
        if not spec.get("activeDeadlineSeconds"):
            problems.append(f"{title(doc)}: spec.activeDeadlineSeconds: missing")
        if spec["template"]["spec"].get("restartPolicy") != "Never":
            problems.append(f"{title(doc)}: spec.template.spec.restartPolicy: must be Never")
    return problems


def options(container: Doc) -> dict[str, str]:
    """``--name=value`` of a command line."""
    pairs = (one.partition("=") for one in container.get("args", []))
    return {name: value for name, _, value in pairs}


def master_and_workers_fit(docs: list[Doc]) -> list[str]:
    """The master expects the workers that there are, on its Service, and writes its results."""
    if not of_kind(docs, "Job"):
        return []
    problems = []
    master = find(docs, "Job", "muxserve-loadtest-master")
    workers = find(docs, "Job", "muxserve-loadtest-worker")
    (of_master,) = master["spec"]["template"]["spec"]["containers"]
    (of_workers,) = workers["spec"]["template"]["spec"]["containers"]
    given = options(of_master)
    where = f"{title(master)}: spec.template.spec.containers[0].args"
    problems += [
        f"{where}: {name} is missing"
        for name in ("--master", "--headless", "--csv", "--expect-workers", "--run-time")
        if name not in given
    ]
    counts = {workers["spec"].get(name) for name in ("parallelism", "completions")}
    if {str(count) for count in counts} != {given.get("--expect-workers")}:
        problems.append(
            f"{title(workers)}: spec.parallelism, completions: {counts}, the master expects "
            f"{given.get('--expect-workers')} (--expect-workers)"
        )
    host = options(of_workers).get("--master-host")
    if host not in {doc["metadata"]["name"] for doc in of_kind(docs, "Service")}:
        problems.append(
            f"{title(workers)}: spec.template.spec.containers[0].args: no Service {host!r} "
            "(--master-host)"
        )
    return problems
