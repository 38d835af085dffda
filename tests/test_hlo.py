"""Collectives read from HLO text: literal lines in every printed form, and one program compiled here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autosharding.hlo import bits, collectives, group_axes, iota

MESH = {"x": 2, "y": 4}
HEAD = "HloModule jit_f, is_scheduled=true, num_partitions=8\n"


def one(line: str):
    (found,) = collectives(HEAD + line)
    return found


@pytest.mark.parametrize(
    ("line", "kind", "axes", "size", "elements"),
    [
        (
            "  %psum.21 = f32[8,16]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, "
            'use_global_device_ids=true, to_apply=%r, metadata={op_name="jit(f)/psum" stack_frame_id=19}',
            "all-reduce",
            ("x",),
            512,
            128,
        ),
        (
            "  ROOT %ag = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(bf16[8,8]{1,0} %p), replica_groups=[1,8]<=[8], "
            "dimensions={0}",
            "all-gather",
            ("x", "y"),
            1024,
            512,
        ),
        (
            "  %rs = f32[4,8]{1,0} reduce-scatter(%p), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%r",
            "reduce-scatter",
            ("x",),
            256,
            64,
        ),
        (
            "  %a2a = (f32[8,4]{1,0}, f32[8,4]{1,0}, f32[8,4]{1,0}, /*index=3*/f32[8,4]{1,0}) "
            "all-to-all(%a, %b, %c, %d), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
            "all-to-all",
            ("y",),
            512,
            128,
        ),
        (
            "  %cp = u8[8]{0} collective-permute(%p), "
            "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}",
            "collective-permute",
            ("y",),
            8,
            8,
        ),
        (
            "  %ar = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce(%a, %b), replica_groups={}, to_apply=%r",
            "all-reduce",
            ("x", "y"),
            48,
            16,
        ),
        (
            "  %ars = (f32[8]{0}, f32[2]{0}) all-reduce-start(%a, %b), replica_groups=[2,4]<=[8], to_apply=%r",
            "all-reduce",
            ("y",),
            40,
            10,
        ),
        (
            "  %ags = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8], dimensions={0}",
            "all-gather",
            ("y",),
            32,
            8,
        ),
        (
            "  %ags = ((f32[2]{0}, f32[1]{0}), (f32[8]{0}, f32[4]{0})) all-gather-start(%a, %b), "
            "replica_groups=[2,4]<=[8], dimensions={0}",
            "all-gather",
            ("y",),
            48,
            12,
        ),
        (
            "  %cps = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%a), "
            "source_target_pairs={{0,4},{4,0}}",
            "collective-permute",
            ("x",),
            32,
            8,
        ),
        (
            "  %rss = ((f32[8]{0}), f32[2]{0}, u32[]) reduce-scatter-start(%a), "
            "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%r",
            "reduce-scatter",
            ("y",),
            32,
            8,
        ),
    ],
)
def test_reads_a_line(line, kind, axes, size, elements):
    found = one(line)
    assert (found.kind, found.axes(MESH), found.bytes, found.elements) == (kind, axes, size, elements)


def test_what_is_no_collective_is_not_counted():
    text = HEAD + "\n".join(
        [
            "  %d = f32[8]{0} all-reduce-done(%ars)",
            "  %g = f32[8]{0} get-tuple-element(%all-to-all), index=0",
            '  %add = f32[8]{0} add(%a, %b), metadata={op_name="all-reduce(x)"}',
            "  %self = f32[8]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%r",
            "  %stay = f32[8]{0} collective-permute(%p), source_target_pairs={{0,0},{1,1}}",
        ]
    )
    assert collectives(text) == ()
    assert collectives("") == ()


def test_names_and_paths():
    found = one('  %psum.2 = f32[] all-reduce(%p), replica_groups={{0,1}}, metadata={op_name="jit(f)/a\\"b"}')
    assert (found.name, found.op_name, found.dtypes) == ("psum.2", 'jit(f)/a\\"b', ("f32",))
    assert found.axes(MESH) is None  # two of eight devices: no axes have such groups


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("x", "z")),
        ("@mesh<a=2,b=2,c=2> {b}", ("y",)),
        ("mesh['a'=8] {'a':(2)2}", ("y",)),
        ("mesh['a'=8] {'a':(1)4}", ("x", "y")),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("x",)),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", ("x",)),
    ],
)
def test_groups_along_a_mesh(groups, axes):
    found = one(f"  %r = f32[4]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%r")
    assert found.axes({"x": 2, "y": 2, "z": 2}) == axes


def test_group_axes_name_no_axis_of_size_one():
    assert group_axes([[0, 1], [2, 3]], {"a": 1, "x": 2, "y": 2}) == ("y",)
    assert group_axes([[0, 3], [1, 2]], {"x": 2, "y": 2}) is None


def test_iota():
    np.testing.assert_array_equal(iota("[4,2]<=[2,4]T(1,0)"), [[0, 4], [1, 5], [2, 6], [3, 7]])


def test_bits():
    found = [bits(d) for d in ("pred", "f8e4m3fn", "bf16", "s4", "u32", "c64", "token")]
    assert found == [8, 8, 16, 4, 32, 64, 0]


def test_a_program_compiled_here():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("x", "y"))

    def body(a):
        gathered = jax.lax.all_gather(a, ("x", "y"), axis=0, tiled=True)
        scattered = jax.lax.psum_scatter(a, "x", scatter_dimension=0, tiled=True)
        exchanged = jax.lax.all_to_all(a, "y", split_axis=1, concat_axis=0, tiled=True)
        return jax.lax.psum(a, "y"), gathered, scattered, exchanged, jax.lax.ppermute(a, "x", [(0, 1), (1, 0)])

    run = jax.shard_map(body, mesh=mesh, in_specs=P(("x", "y")), out_specs=P(), check_vma=False)
    a = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P(("x", "y"))))
    found = {(c.kind, c.axes(MESH)): c.bytes for c in collectives(jax.jit(run).lower(a).compile().as_text())}
    local = 8 * 16 * 4
    assert found == {
        ("all-reduce", ("y",)): local,
        ("all-gather", ("x", "y")): 8 * local,
        ("reduce-scatter", ("x",)): local,
        ("all-to-all", ("y",)): local,
        ("collective-permute", ("x",)): local,
    }


LOOPS = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ar = f32[8]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%test (p: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%branch.1 (p: (f32[8])) -> f32[32] {
  ROOT %ag = f32[32]{0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%branch.2 (p: (f32[8])) -> f32[32] {
  ROOT %b = f32[32]{0} broadcast(%c), dimensions={}
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%t), condition=%test, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
  %c = f32[32]{0} conditional(%i, %t1, %t2), branch_computations={%branch.1, %branch.2}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w1 = (s32[], f32[8]) while(%t), condition=%test, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %w2 = (s32[], f32[8]) while(%t), condition=%test, body=%inner
  %ar1 = f32[8]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_count_as_often_as_their_loops_run():
    found = {c.name: c.times for c in collectives(HEAD + LOOPS, unknown_trips=7)}
    assert found == {"ar": 3 * 5 + 7, "ag": 3, "ar1": 1}
