"""The order of training samples: each epoch every image once, and the same again from anywhere."""

from hypothesis import given
from hypothesis import strategies as st

from ssdd.training.ingest import Order

ORDERS = st.builds(
    Order, st.integers(1, 40), part_size=st.integers(1, 9), seed=st.integers(0, 5), together=st.integers(1, 5)
)


@given(ORDERS, st.integers(1, 3))
def test_each_epoch_has_every_image_once(order, epochs):
    stream = list(order.rows(0, epochs * order.images))
    assert [epoch for epoch, _ in stream] == [e for e in range(epochs) for _ in range(order.images)]
    for epoch in range(epochs):
        assert sorted(row for e, row in stream if e == epoch) == list(range(order.images))


@given(ORDERS, st.data())
def test_any_piece_of_the_stream_is_as_in_the_whole(order, data):
    whole = list(order.rows(0, 3 * order.images))
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    assert list(order.rows(begin, end)) == whole[begin:end]


def test_parts_are_shuffled_with_their_neighbours():
    order = Order(images=64, part_size=4, seed=0, together=4)
    rows = [row for _, row in order.rows(0, 64)]
    for k in range(0, 64, 16):
        assert len({row // 4 for row in rows[k : k + 16]}) == 4, "four parts at a time"
        assert len({row // 4 for row in rows[k : k + 4]}) > 1, "not one after the other"
    assert rows != [row for _, row in order.rows(64, 128)]
