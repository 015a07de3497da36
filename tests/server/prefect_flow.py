"""An unmodified Prefect program; run by an interpreter that has Prefect. Prints what its flow returned."""

from __future__ import annotations

from prefect import flow, get_run_logger, tags, task
from prefect.runtime import flow_run


@task
def add(a: int, b: int) -> int:
    get_run_logger().info("adding %s and %s", a, b)
    return a + b


@task
def adds_twice() -> int:
    return add(add(1, 1), 1)


attempts = []


@task(retries=1, name="unsteady task", task_run_name="unsteady-{why}")
def unsteady(why: str) -> str:
    attempts.append(why)
    if len(attempts) == 1:
        raise ConnectionError("not yet")
    return why


@task
def fails() -> None:
    raise RuntimeError("on purpose")


@flow(log_prints=True, flow_run_name="inner of {number}")
def inner(number: int) -> int:
    print("inside", number)
    return add(number, 1)


flow_attempts = []


@flow(retries=2)
def second_time_lucky() -> str:
    flow_attempts.append(flow_run.id)
    if len(flow_attempts) == 1:
        raise OSError("the first time")
    return "lucky"


@flow(name="outer-flow")
def outer() -> list:
    logger = get_run_logger()
    logger.info("hello from %s", flow_run.name)
    with tags("nightly"):
        found = [add(1, 2), unsteady("weather"), add.submit(3, 4).result()]
    found += [inner(5), second_time_lucky(), adds_twice()]
    try:
        fails()
    except RuntimeError:
        logger.warning("as expected")
    return found


@flow(name="failing-flow")
def failing() -> None:
    fails()


if __name__ == "__main__":
    print("RESULT", outer())
    failing()
