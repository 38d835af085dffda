import stage_dp


def test_everything_named_is_there_and_nothing_twice():
    assert len(set(stage_dp.__all__)) == len(stage_dp.__all__)
    assert all(hasattr(stage_dp, name) for name in stage_dp.__all__)
