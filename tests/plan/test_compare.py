"""A plan against HLO texts that agree with it, are wider, differ; and against programs compiled here."""

from types import SimpleNamespace

import pytest
from small_plan import other_plan, small_plan

from autosharding.compare import XlaMemory, compare

HEAD = "HloModule jit_step, num_partitions=8\n"
GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%r"


class Program:
    def __init__(self, *lines, memory=None):
        self.lines = lines
        self.memory = memory

    def as_text(self):
        return HEAD + "\n".join(self.lines)

    def memory_analysis(self):
        return self.memory


def test_the_same():
    found = compare(small_plan(), Program(f"  %a = f32[8,32]{{1,0}} all-reduce(%p), {GROUPS}"))
    assert found.agrees
    assert found.memory_ratio is None
    assert "all-reduce  y" in str(found)
    assert "equal" in str(found)


def test_merged_and_split():
    half = f"f32[4,32]{{1,0}} all-reduce(%p), {GROUPS}"
    assert compare(small_plan(), Program(f"  %a = {half}", f"  %b = {half}")).agrees


def test_widened():
    found = compare(small_plan(), Program(f"  %a = f64[8,32]{{1,0}} all-reduce(%p), {GROUPS}"))
    assert found.agrees
    assert found.lines[0].widened
    assert "widened" in str(found)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (f"  %a = f32[8,16]{{1,0}} all-reduce(%p), {GROUPS}",),
        (f"  %a = bf16[8,32]{{1,0}} all-reduce(%p), {GROUPS}",),
        ("  %a = f32[8,32]{1,0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%r",),
        ("  %a = f32[8,32]{1,0} all-reduce(%p), replica_groups={{0,7},{1,6},{2,5},{3,4}}, to_apply=%r",),
        (f"  %a = f32[8,32]{{1,0}} all-gather(%p), {GROUPS}",),
    ],
)
def test_another(lines):
    found = compare(small_plan(), Program(*lines))
    assert not found.agrees
    assert "DIFFERS" in str(found)
    assert "are not the plan's" in str(found)


def test_nothing_planned_nothing_sent():
    assert compare(other_plan(), Program()).agrees
    permute = "  %p = f32[8]{0} collective-permute(%a), source_target_pairs={{0,4},{4,0}}"
    assert not compare(other_plan(), Program(permute)).agrees


def test_memory():
    stats = SimpleNamespace(
        argument_size_in_bytes=2000,
        output_size_in_bytes=3000,
        temp_size_in_bytes=1632,
        alias_size_in_bytes=1000,
    )
    found = compare(small_plan(), Program(memory=stats))
    assert found.memory == XlaMemory(2000, 3000, 1632, 1000)
    assert found.memory_ratio == 1.0
    assert "ratio" in str(found)
    assert "<table>" in found._repr_html_()
