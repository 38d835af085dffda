"""The simulator against closed forms, and against a plain relaxation of the precedence graph."""

import json
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from stage_dp import (
    SCHEDULES,
    Kind,
    Price,
    StageError,
    chrome_trace,
    forward_only,
    gpipe,
    interleaved,
    one_f_one_b,
    peak_of,
    simulate,
    zero_bubble,
)

SIZES = [(1, 1), (2, 1), (2, 3), (3, 8), (4, 8), (8, 8), (8, 3), (5, 40)]


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "1f1b-eager"])
def test_bubble_of_equal_stages(name, n, m):
    timeline = simulate(SCHEDULES[name](n, m), [Price(1.0, 2.0)] * n)
    assert timeline.bubble() == pytest.approx((n - 1) / (m + n - 1))
    assert timeline.seconds == pytest.approx(3.0 * (m + n - 1))


@pytest.mark.parametrize(("f", "b", "w"), [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (2.0, 1.5, 0.5)])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_zero_bubble_of_equal_stages(n, m, f, b, w):
    timeline = simulate(zero_bubble(n, m), [Price(f, b, w)] * n)
    assert timeline.seconds == pytest.approx(m * (f + b + w) + (n - 1) * (f + b) - (min(m, n) - 1) * w)


def test_zero_bubble_leaves_a_third_of_the_bubble_at_the_memory_of_1f1b():
    prices = [Price(1.0, 1.0, 1.0, microbatch_bytes=7)] * 4
    zero, plain = simulate(zero_bubble(4, 16), prices), simulate(one_f_one_b(4, 16), prices)
    idle = [line.seconds - 16 * 3 for line in (zero, plain)]
    assert idle[0] == pytest.approx(idle[1] / 3)
    assert max(zero.peak_bytes) == max(plain.peak_bytes)


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_interleaving_divides_the_bubble(chunks):
    for n, m in [(2, 2), (2, 8), (4, 4), (4, 16)]:
        timeline = simulate(interleaved(n, m, chunks), [Price(1.0 / chunks, 2.0 / chunks)] * (n * chunks))
        assert timeline.bubble() == pytest.approx((n - 1) / (chunks * m + n - 1))


def by_longest_path(schedule, prices, transfers):
    """The step as the longest path over tasks and transfers that wait for one another."""
    graph = nx.DiGraph()

    def seconds(task):
        price = prices[schedule.piece(task)]
        whole = price.backward + (0 if schedule.splits_backward else price.weight)
        after = sum(p.after for p in prices[task.stage :: schedule.n_stages])
        return {Kind.FORWARD: price.forward, Kind.BACKWARD: whole, Kind.WEIGHT: price.weight, Kind.UPDATE: after}[
            task.kind
        ]

    last_on_link = {}
    for stage, tasks in enumerate(schedule.lists):
        before = ("before", stage)
        graph.add_node(before, seconds=sum(p.before for p in prices[stage :: schedule.n_stages]))
        for task in tasks:
            graph.add_node(task, seconds=seconds(task))
            graph.add_edge(before, task)
            before = task
            receiver = schedule.feeds(task)
            if receiver is None:
                continue
            boundary = min(schedule.piece(task), schedule.piece(receiver))
            move = ("move", task)
            graph.add_node(move, seconds=transfers[boundary][task.kind is Kind.BACKWARD])
            graph.add_edges_from([(task, move), (move, receiver)])
            link = (boundary, task.kind)
            if link in last_on_link:
                graph.add_edge(last_on_link[link], move)
            last_on_link[link] = move
        if not schedule.trains:
            graph.add_node(("after", stage), seconds=sum(p.after for p in prices[stage :: schedule.n_stages]))
            graph.add_edge(before, ("after", stage))
    end = {}
    for node in nx.topological_sort(graph):
        start = max((end[other] for other in graph.predecessors(node)), default=0.0)
        end[node] = start + graph.nodes[node]["seconds"]
    return max(end.values())


@pytest.mark.parametrize("seed", range(30))
def test_unequal_stages_with_transfers(seed):
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 6)), int(rng.integers(1, 9))
    schedules = [make(n, m) for make in SCHEDULES.values()]
    if n > 1:
        schedules.append(interleaved(n, n * m, 2))
    for schedule in schedules:
        pieces = schedule.n_pieces
        prices = [Price(*rng.random(5).tolist()) for _ in range(pieces)]
        transfers = [tuple(rng.random(2).tolist()) for _ in range(pieces - 1)]
        timeline = simulate(schedule, prices, transfers)
        assert timeline.seconds == pytest.approx(by_longest_path(schedule, prices, transfers))
        assert len(timeline.moves) == sum(schedule.feeds(task) is not None for task in schedule.order)
        for stage, spans in enumerate(timeline.by_stage):
            assert tuple(span.task for span in spans) == schedule.lists[stage]
            assert all(a.end <= b.start + 1e-12 for a, b in pairwise(spans))
        assert simulate(schedule, prices, transfers, overlap=False).seconds >= timeline.seconds - 1e-12
        assert simulate(schedule, prices, transfers, joint_update=True).seconds >= timeline.seconds


def test_transfers_without_overlap_stop_the_sender():
    prices = [Price(1.0, 1.0)] * 2
    assert simulate(gpipe(2, 2), prices, [(0.5, 0.5)]).seconds == pytest.approx(1 + 0.5 + 2 + 2 + 0.5 + 1)
    # stage 0: F 0-1, send to 1.5, F 1.5-2.5, send to 3; stage 1: F1 3-4, B0 4-5, send to 5.5, B1 to 6.5, send to 7
    assert simulate(gpipe(2, 2), prices, [(0.5, 0.5)], overlap=False).seconds == pytest.approx(8.0)


def test_a_joint_update_waits_for_the_last_gradient():
    prices = [Price(1.0, 1.0, after=2.0), Price(1.0, 1.0, after=2.0)]
    alone, joint = (simulate(one_f_one_b(2, 2), prices, joint_update=joint) for joint in (False, True))
    assert {span.end for span in joint.spans if span.task.kind is Kind.UPDATE} == {alone.seconds}
    assert min(span.end for span in alone.spans if span.task.kind is Kind.UPDATE) == alone.seconds - 1.0


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "1f1b-eager", "zero-bubble"])
def test_memory_over_time_peaks_at_state_plus_what_is_in_flight(name):
    schedule = SCHEDULES[name](4, 8)
    prices = [Price(1.0, 1.0, 1.0, state_bytes=100 + i, microbatch_bytes=10, working_bytes=3) for i in range(4)]
    timeline = simulate(schedule, prices)
    assert timeline.peak_bytes == tuple(price.bytes(n) for price, n in zip(prices, schedule.in_flight, strict=True))
    for price, curve in zip(prices, timeline.memory, strict=True):
        assert curve.bytes[0] in (price.state_bytes, price.state_bytes + 13)
        assert curve.bytes[-1] == price.state_bytes
        assert all(np.diff(curve.seconds) > 0)


def test_bubble_counts_devices():
    timeline = simulate(one_f_one_b(2, 1), [Price(1.0), Price(3.0)])
    assert timeline.bubble() == pytest.approx(0.5)
    assert timeline.bubble((1, 3)) == pytest.approx(1 - (1 * 1 + 3 * 3) / (4 * 4))


def test_trace_is_what_perfetto_reads():
    timeline = simulate(one_f_one_b(2, 3), [Price(1.0, 2.0, after=1.0, microbatch_bytes=5)] * 2, [(0.25, 0.5)])
    events = json.loads(json.dumps(chrome_trace(timeline)))["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == 2 * (2 * 3 + 1) + 2 * 3
    assert max(event["ts"] + event["dur"] for event in slices) == pytest.approx(timeline.seconds * 1e6)
    by_thread = {}
    for event in sorted(slices, key=lambda event: event["ts"]):
        assert event["ts"] >= by_thread.get(event["tid"], 0.0) - 1e-6
        by_thread[event["tid"]] = event["ts"] + event["dur"]
    counters = [event for event in events if event["ph"] == "C"]
    assert max(event["args"]["bytes"] for event in counters) == max(timeline.peak_bytes)


def test_what_comes_after_the_microbatches_counts_without_a_backward_pass():
    found = simulate(forward_only(2, 3), [Price(1.0, after=5.0), Price(1.0, after=2.0)])
    assert found.seconds == max(3.0 + 5.0, 4.0 + 2.0)
    assert found.busy == (8.0, 5.0)


def test_prices_for_another_number_of_stages():
    with pytest.raises(StageError, match="has 2 pieces and 1 boundaries"):
        simulate(one_f_one_b(2, 3), [Price(1.0)] * 3)


@pytest.mark.parametrize("x", [0.1, 0.5, 1.4])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_transfers_hide_in_eager_1f1b_and_show_in_1f1b(n, x):
    """A transfer each way takes x seconds, a microbatch 3 per stage; periods by the cycles of `objective`."""

    def seconds(name, m):
        return simulate(SCHEDULES[name](n, m), [Price(1.0, 2.0)] * n, [(x, x)] * (n - 1)).seconds

    assert seconds("1f1b-eager", 4 * n) == pytest.approx(3 * (4 * n - 1) + 3 * n + 2 * (n - 1) * x)
    period = (seconds("1f1b", 8 * n) - seconds("1f1b", 4 * n)) / (4 * n)
    assert period == pytest.approx(3 + 2 * x * (n - 1) / n)


@pytest.mark.parametrize("seed", range(40))
def test_the_objective_bounds_what_is_replayed(seed):
    """1F1B from above, GPipe from below (`objective`)."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 7)), int(rng.integers(1, 20))
    prices = [Price(*rng.random(3).tolist()) for _ in range(n)]
    sent = [tuple((rng.random(2) * rng.choice([0.1, 1.0])).tolist()) for _ in range(n - 1)]
    charged = [price.seconds + (sum(sent[i - 1]) if i else 0.0) for i, price in enumerate(prices)]
    beside = [*(price.seconds for price in prices), *(seconds for pair in sent for seconds in pair)]
    assert simulate(one_f_one_b(n, m), prices, sent).seconds <= ((m - 1) * max(charged) + sum(charged)) * (1 + 1e-9)
    assert simulate(gpipe(n, m), prices, sent).seconds >= ((m - 1) * max(beside) + sum(charged)) * (1 - 1e-9)


def test_what_is_let_go_of_early_and_what_is_held_outside_of_the_loop():
    price = Price(1.0, 1.0, 1.0, state_bytes=10, microbatch_bytes=8, released_bytes=6, working_bytes=1)
    kept = replace(price, released_bytes=0)
    for schedule in (zero_bubble(2, 4), one_f_one_b(2, 4)):
        peaks = [tuple(peak_of(schedule, [p] * 2)) for p in (price, kept)]
        assert peaks[1] == tuple(10 + 8 * n + 1 for n in schedule.in_flight)
        assert (peaks[0] < peaks[1]) == schedule.splits_backward
        assert simulate(schedule, [price] * 2).peak_bytes == peaks[0]
    assert tuple(peak_of(one_f_one_b(2, 4), [replace(price, outside_bytes=99)] * 2)) == (99, 99)
    assert replace(price, outside_bytes=99).bytes(1) == 99
