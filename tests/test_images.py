"""The labelled grid."""

from grids import images, levels

from ddpm_hf.images import labelled_grid


def test_images_stand_beside_their_name_in_order():
    grid = labelled_grid({"Bag": images(10, 20, 30), "Ankle boot": images(40, 50)})
    assert levels(grid, 2, 3) == [[10, 20, 30], [40, 50, 255]]
    alone = labelled_grid({"Bag": images(10), "": images(40)})
    names = alone.crop((0, 0, alone.width - 58, alone.height)).convert("L").point(lambda level: 255 - level)
    _, top, _, bottom = names.getbbox()
    assert 0 < top < bottom < 58  # in its own row


def test_a_row_without_a_name_is_a_square():
    assert levels(labelled_grid({"": images(*range(9))}), 3, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    grid = labelled_grid({"": images(1, 2, 3, 4, 5)})
    assert levels(grid, 2, 3) == [[1, 2, 3], [4, 5, 255]] and grid.width == 3 * 58  # no margin for names
