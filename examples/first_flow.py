"""
A first flow: a run, two tasks, and lines that know where they belong.

Run it with ``python examples/first_flow.py``. The lines appear on the console;
if ``runlog server start`` runs in another terminal, they are stored as well, and
``runlog logs latest`` prints them again, with the values that came as ``extra``.
"""

from __future__ import annotations

from runlog import flow_run, get_run_logger, setup_logging, task_run

ORDERS = [
    {"id": 1, "customer": "Ada", "amount": 120.0},
    {"id": 2, "customer": "Grace", "amount": -5.0},
    {"id": 3, "customer": "Edsger", "amount": 80.5},
]


@task_run("extract")
def extract() -> list[dict]:
    get_run_logger().info("found %d orders", len(ORDERS), extra={"table": "orders"})
    return ORDERS


@task_run("check", log_prints=True)
def check(orders: list[dict]) -> list[dict]:
    logger = get_run_logger()
    good = []
    for order in orders:
        if order["amount"] < 0:
            # What comes as extra is stored beside the message, and can be searched for.
            logger.warning("order %d has a negative amount", order["id"], extra={"amount": order["amount"]})
        else:
            good.append(order)
    print(f"{len(good)} of {len(orders)} orders are good")  # a line of this task, thanks to log_prints
    return good


def main() -> None:
    setup_logging()  # once, at start-up
    with flow_run("orders", source="memory"):  # the flow's own lines carry source=memory
        total = sum(order["amount"] for order in check(extract()))
        get_run_logger().info("total: %.2f", total)


if __name__ == "__main__":
    main()
