"""Pictures, as far as a test can look at them."""

import numpy as np
import pytest

from ssdd.data import codec
from ssdd.reports import figures
from ssdd.storage import maps

CLASSES = ("background", "cat", "dog")


def mask(*values):
    return codec.encode_mask(np.array([values], np.uint8))


@pytest.fixture
def row():
    image = codec.encode_mask(np.zeros((1, 5), np.uint8))  # any decodable image
    d = maps.pack_unit(np.zeros((1, 5), np.float32))
    masks = {"knowledge": mask(0, 0, 0, 0, 0), "advice": mask(1, 0, 1, 2, 1), "refined": mask(1, 1, 0, 0, 0)}
    return {"image_id": "a", "image": image, "truth": mask(1, 1, 1, 1, 255), "d_knowledge": d, "d_advice": d, **masks}


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_gain_is_green_where_only_the_first_is_right_and_red_where_only_the_second_is(row):
    picture = figures._gain("refined", "advice")(row)
    same, better, worse, both_wrong, unlabelled = picture[0].tolist()
    assert same == [255, 255, 255]
    assert better[1] > max(better[0], better[2])
    assert worse[0] > max(worse[1], worse[2])
    assert both_wrong == unlabelled == [190, 190, 190]
    assert figures._gain("refined", "advice")({**row, "truth": None}) is None


def test_pictures_without_the_data_show_masks_alone(row):
    whole, own = (titles(figures.refinement([row], CLASSES, show_data)) for show_data in (True, False))
    assert (whole[0], whole[-1]) == ("image", "truth")
    assert own == whole[1:-1]


def test_predictions_are_compared_with_the_baseline_where_there_is_one(row):
    both = {**row, "baseline": row["advice"], "dynamic": row["refined"], "dynamic_crf": row["truth"]}
    picture = figures.predictions([both], CLASSES)
    gain = picture.axes[titles(picture).index("against baseline")].images[0].get_array()
    np.testing.assert_array_equal(gain, figures._gain("dynamic", "baseline")(both))  # like with like: without CRF
    del both["baseline"]
    assert "against baseline" not in titles(figures.predictions([both], CLASSES))
    knowledge = {**row, "baseline_knowledge": row["knowledge"]}
    assert len(titles(figures.predictions([knowledge], CLASSES, show_data=False))) == 1
