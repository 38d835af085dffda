"""Task lists: what each holds, what is in flight, and lists that cannot run."""

from dataclasses import replace

import pytest

from stage_dp import (
    SCHEDULES,
    Kind,
    Schedule,
    ScheduleError,
    StageError,
    Task,
    eager_one_f_one_b,
    forward_only,
    gpipe,
    interleaved,
    one_f_one_b,
    zero_bubble,
)

SIZES = [(n, m) for n in (1, 2, 3, 4, 7) for m in (1, 2, 3, 4, 8, 13)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_list_is_valid_and_the_order_keeps_to_it(name):
    for n, m in SIZES:
        schedule = SCHEDULES[name](n, m)
        schedule.verify()
        for stage in range(n):
            assert tuple(task for task in schedule.order if task.stage == stage) == schedule.lists[stage]
        at = {task: i for i, task in enumerate(schedule.order)}
        assert all(at[need] < at[task] for task in at for need in schedule.needs(task))


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_interleaved_lists_are_valid(chunks):
    for n in (1, 2, 4):
        for m in (n, 2 * n, 5 * n):
            schedule = interleaved(n, m, chunks)
            schedule.verify()
            assert schedule.in_flight == tuple(
                min(chunks * m, 2 * (n - i - 1) + (chunks - 1) * n + 1) for i in range(n)
            )


def test_in_flight_of_four_stages_and_eight_microbatches():
    """oracles: GPipe [8,8,8,8], 1F1B [4,3,2,1], overlap-friendly [7,5,3,1]; ZB-H1 holds what 1F1B's first does."""
    assert gpipe(4, 8).in_flight == (8, 8, 8, 8)
    assert one_f_one_b(4, 8).in_flight == (4, 3, 2, 1)
    assert eager_one_f_one_b(4, 8).in_flight == (7, 5, 3, 1)
    assert zero_bubble(4, 8).in_flight == (4, 4, 4, 4)
    assert forward_only(4, 8).in_flight == (1, 1, 1, 1)
    assert one_f_one_b(4, 2).in_flight == (2, 2, 2, 1)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (3, 4), (4, 8), (8, 32)])
def test_clocks_without_the_update(n, m):
    for schedule in (gpipe(n, m), one_f_one_b(n, m)):
        rows = [[task for task in row if task and task.kind is not Kind.UPDATE] for row in schedule.clocks]
        assert sum(map(bool, rows)) == 2 * (m + n - 1)


def test_1f1b_of_three_stages_and_four_microbatches_clock_by_clock():
    """Published table: (microbatch, i) is forward on stage i, and backward of stage 2n-1-i from n on; 2n+i updates."""
    table = """
        (0,0) - -       | (1,0) (0,1) -     | (2,0) (1,1) (0,2) | - - (0,3)
        - (0,4) (1,2)   | (0,5) (2,1) (1,3) | (3,0) (1,4) (2,2) | (1,5) (3,1) (2,3)
        - (2,4) (3,2)   | (2,5) - (3,3)     | - (3,4) -         | (3,5) - -
    """
    wanted = [row.split() for line in table.strip().splitlines() for row in line.split("|")]
    n = 3

    def entry(task):
        if task is None or task.kind is Kind.UPDATE:
            return "-"
        return f"({task.microbatch},{task.stage if task.kind is Kind.FORWARD else 2 * n - 1 - task.stage})"

    assert [[entry(task) for task in row] for row in one_f_one_b(n, 4).clocks][: len(wanted)] == wanted


def test_results_go_to_the_neighbour():
    schedule = interleaved(2, 4, 2)
    assert schedule.feeds(Task(Kind.FORWARD, 1, 0, 3)) == Task(Kind.FORWARD, 0, 1, 3)
    assert schedule.feeds(Task(Kind.FORWARD, 1, 1, 3)) is None
    assert schedule.feeds(Task(Kind.BACKWARD, 0, 1, 3)) == Task(Kind.BACKWARD, 1, 0, 3)
    assert schedule.feeds(Task(Kind.BACKWARD, 0, 0, 3)) is None
    assert schedule.feeds(Task(Kind.UPDATE, 0)) is None


def test_lists_that_wait_for_one_another_are_refused():
    good = one_f_one_b(2, 2)
    first = good.lists[0]
    stuck = replace(good, lists=((first[0], first[2], first[1], *first[3:]), good.lists[1]))
    assert stuck.lists[0][1].kind is Kind.BACKWARD
    stuck.verify()  # less overlap, but it runs
    stuck = replace(good, lists=(first, (good.lists[1][1], good.lists[1][0], *good.lists[1][2:])))
    with pytest.raises(ScheduleError, match="B0 of stage 1 waits for F0 of stage 1"):
        stuck.verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tasks: tasks[1:], "F0 of stage 0 is missing"),
        (lambda tasks: (tasks[0], *tasks), "F0 of stage 0 is listed twice"),
        (lambda tasks: (*tasks[:-1], Task(Kind.FORWARD, 0, 0, 9), tasks[-1]), "F9 of stage 0 is not one of the tasks"),
        (lambda tasks: (tasks[-1], *tasks[:-1]), "update must be the last"),
    ],
)
def test_wrong_lists_are_refused(change, message):
    good = one_f_one_b(2, 2)
    wrong = Schedule("mine", 2, 2, (change(good.lists[0]), good.lists[1]))
    with pytest.raises(ScheduleError, match=message):
        wrong.verify()


def test_interleaving_wants_microbatches_in_groups():
    with pytest.raises(StageError, match="nearest counts that do: 8 and 12"):
        interleaved(4, 10, 2)
    with pytest.raises(StageError, match="nearest counts that do: 4"):
        interleaved(4, 3, 2)


def test_no_stages_or_no_microbatches():
    with pytest.raises(ScheduleError, match="at least one"):
        one_f_one_b(0, 4)
    with pytest.raises(ScheduleError, match="at least one"):
        gpipe(2, 0)
