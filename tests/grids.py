"""Images of one grey level, and the levels of a grid of them."""

from PIL import Image


def levels(grid: Image.Image, num_rows: int, num_columns: int) -> list[list[int]]:
    """The grey level in the middle of each place, 56 pixels and a margin of 2 wide and high, from the right edge."""
    left = grid.width - num_columns * 58
    assert grid.height == num_rows * 58 and left >= 0
    middles = [[(left + j * 58 + 29, i * 58 + 29) for j in range(num_columns)] for i in range(num_rows)]
    return [[grid.getpixel(middle)[0] for middle in row] for row in middles]


def images(*levels: int) -> list[Image.Image]:
    return [Image.new("L", (28, 28), level) for level in levels]
