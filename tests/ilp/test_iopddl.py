"""The public format, read, written, checked; and the command line on it, on whole and on damaged files."""

import copy
import ctypes
import gzip
import itertools
import json
import re

import numpy as np
import pytest
from example import EXAMPLE
from random_problems import random_problem

import ilp
import ilp.cli
from ilp.check import check
from ilp.cli import main
from ilp.iopddl import read_problem, read_solution, write_problem, write_solution


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "example.json"
    path.write_text(json.dumps(EXAMPLE))
    return path


def without_limit(data):
    data = copy.deepcopy(data)
    del data["problem"]["usage_limit"]
    return data


def test_the_example(example, tmp_path):
    assert ilp.solve(read_problem(example)).objective == 445
    assert ilp.solve(read_problem(example)).choice == (0, 0, 2, 1, 0)
    example.write_text(json.dumps(without_limit(EXAMPLE)))
    assert ilp.solve(read_problem(example)).objective == 415


@pytest.mark.parametrize("name", ["problem.json", "problem.json.gz"])
def test_what_is_written_reads_the_same(tmp_path, name):
    rng = np.random.default_rng(2)
    for _ in range(30):
        problem = random_problem(rng)
        write_problem(problem, tmp_path / name)
        again = read_problem(tmp_path / name)
        extra = len(again.costs) - len(problem.costs)
        assert again.limit == problem.limit
        for _ in range(10):
            choice = tuple(int(rng.integers(len(cost))) for cost in problem.costs)
            followed = choice + tuple(
                next(choice[e.u] for e in again.edges if e.v == node)
                for node in range(len(choice), len(choice) + extra)
            )
            assert again.evaluate(followed) == pytest.approx(problem.evaluate(choice), rel=1e-12)
            assert again.peak(followed)[0] == problem.peak(choice)[0]


def test_forbidden_is_ten_to_the_eighteen(tmp_path, example):
    data = copy.deepcopy(EXAMPLE)
    data["problem"]["nodes"]["costs"][1] = [10**18, 65]
    data["problem"]["edges"]["costs"][1] = [50, 3 * 10**18, 40]
    example.write_text(json.dumps(data))
    problem = read_problem(example)
    assert np.isinf(problem.costs[1][0])
    assert np.isinf(problem.edges[1].cost[0, 1])


def test_check_counts_by_itself(example, tmp_path):
    answer = tmp_path / "answer.json"
    write_solution((0, 0, 2, 1, 0), answer)
    verdict = check(example, answer)
    assert (verdict.cost, verdict.peak, verdict.wrong) == (445, 50, ())
    write_solution((0, 0, 1, 1, 0), answer)
    verdict = check(example, answer)
    assert verdict.cost == 415
    assert verdict.peak == 55
    assert "5 more than the limit" in verdict.wrong[0]
    rng = np.random.default_rng(4)
    for _ in range(30):
        problem = random_problem(rng)
        if any(row.lo < row.hi for row in problem.memory) and len({row.node for row in problem.memory}) < len(
            problem.memory
        ):
            continue
        write_problem(problem, tmp_path / "random.json")
        choice = tuple(int(rng.integers(len(cost))) for cost in problem.costs)
        write_solution(choice, answer)
        verdict = check(tmp_path / "random.json", answer)
        assert (not verdict.wrong) == problem.feasible(choice)
        assert verdict.peak == problem.peak(choice)[0]


def run(capsys, *arguments):
    """Exit status, standard output and standard error of the command line."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return left.value.code or 0, said.out, said.err


def test_the_command_line_solves_and_checks(example, tmp_path, capsys):
    answer = tmp_path / "answer.json"
    status, out, _ = run(capsys, "solve", example, "--seconds", 10, "-o", answer)
    assert status == 0
    assert re.fullmatch(r"cost=445 bound=445 gap=0 seconds=\d+\.\d\d status=optimal", out.strip().splitlines()[-1])
    assert read_solution(answer) == (0, 0, 2, 1, 0)
    assert run(capsys, "check", example, answer)[:2] == (0, "cost=445 peak=50 at=50 limit=50 status=feasible\n")
    write_solution((0, 0, 1, 1, 0), answer)
    assert run(capsys, "check", example, answer)[0] == 1
    out = run(capsys, "info", example)[1]
    assert "5 nodes" in out
    assert "limit 50 bytes" in out


def test_counted_work_prints_the_same_twice(example, tmp_path, capsys):
    answers = []
    for at in range(2):
        assert run(capsys, "solve", example, "--deterministic", 1000, "-o", tmp_path / f"{at}.json")[0] == 0
        answers.append((tmp_path / f"{at}.json").read_bytes())
    assert answers[0] == answers[1]


def test_nothing_but_its_own_lines_is_printed(example, capfd, monkeypatch):
    def noisy(*arguments, **options):
        ctypes.CDLL(None).printf(b"a solver's own line\n")
        return ilp.solve(*arguments, **options)

    monkeypatch.setattr(ilp.cli, "solve_problem", noisy)
    status, out, _ = run(capfd, "solve", example, "--processes", 1)
    ctypes.CDLL(None).fflush(None)
    assert status == 0
    assert capfd.readouterr().out == ""
    assert re.fullmatch(r"cost=445 bound=445 gap=0 seconds=\S+ status=optimal\n", out)


def test_an_infeasible_problem_is_an_answer(example, tmp_path, capsys):
    data = copy.deepcopy(EXAMPLE)
    data["problem"]["usage_limit"] = 20
    example.write_text(json.dumps(data))
    answer = tmp_path / "answer.json"
    status, out, _ = run(capsys, "solve", example, "-o", answer)
    assert status == 0
    assert "time 50" in out
    assert out.strip().endswith("status=infeasible")
    assert not answer.exists()


def test_bench_prints_a_row_per_file(example, capsys):
    status, out, _ = run(capsys, "bench", example.parent, "--seconds", 5)
    assert status == 0
    assert re.search(r"example\W+445\W+445", out)


def damaged():
    """200 files, each wrong in one way: bytes of a file that ends in .json or .json.gz."""
    whole = json.dumps(EXAMPLE).encode()
    packed = gzip.compress(whole, mtime=0)
    cut = [whole[: 1 + at * (len(whole) - 1) // 60] for at in range(60)]
    torn = [packed[: 2 + at * (len(packed) - 2) // 42] for at in range(42)]
    flipped = []
    for at in range(20):
        broken = bytearray(packed)
        broken[-1 - at % 8] ^= 1 << (at // 8)
        flipped.append(bytes(broken))
    wrong = [json.dumps(data).encode() for data in itertools.islice(mistakes(), 80)]
    return [("json", raw) for raw in cut + wrong] + [("json.gz", raw) for raw in torn + flipped]


def mistakes():
    """The example with one thing wrong in it."""
    for part, keys in (("nodes", ("intervals", "costs", "usages")), ("edges", ("nodes", "costs"))):
        for key in keys:
            data = copy.deepcopy(EXAMPLE)
            del data["problem"][part][key]
            yield data
            for bad in (None, 7, "x", {}, [[]], []):
                data = copy.deepcopy(EXAMPLE)
                data["problem"][part][key] = bad
                yield data
            for bad in ("x", None, [1, 2, 3, 4, 5, 6, 7], {}):
                data = copy.deepcopy(EXAMPLE)
                data["problem"][part][key][0] = bad
                yield data
    for limit in (-1, 0.5, "50", [], True):
        data = copy.deepcopy(EXAMPLE)
        data["problem"]["usage_limit"] = limit
        yield data
    for interval in ([70, 30], [1], ["a", "b"], [1.5, 2]):
        data = copy.deepcopy(EXAMPLE)
        data["problem"]["nodes"]["intervals"][2] = interval
        yield data
    for ends in ([0, 9], [-1, 2], [1, 1], [0]):
        data = copy.deepcopy(EXAMPLE)
        data["problem"]["edges"]["nodes"][3] = ends
        yield data
    for usage in ([-1], [1, 2], ["x"], [0.5]):
        data = copy.deepcopy(EXAMPLE)
        data["problem"]["nodes"]["usages"][4] = usage
        yield data
    yield from ([], 3, {"problem": []}, {"problems": {}}, None, "x")


def test_damaged_files_are_explained_and_nothing_is_written(tmp_path, capsys):
    files = damaged()
    assert len(files) == 200
    answer = tmp_path / "answer.json"
    answer.write_text("[7]")
    for at, (ending, raw) in enumerate(files):
        path = tmp_path / f"damaged.{ending}"
        path.write_bytes(raw)
        status, out, err = run(capsys, "solve", path, "-o", answer)
        assert status == 1, (at, raw)
        assert not out, (at, raw)
        assert err.startswith(f"error: {path}"), (at, err)
        assert "Traceback" not in err
        assert answer.read_text() == "[7]"
