import cost_model


def test_everything_named_is_there_and_nothing_twice():
    assert len(set(cost_model.__all__)) == len(cost_model.__all__)
    assert all(hasattr(cost_model, name) for name in cost_model.__all__)
