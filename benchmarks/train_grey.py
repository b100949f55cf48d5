"""diffusers' train_unconditional.py on grey images, which it would make RGB: train_grey.py SCRIPT ARGUMENTS.

So its model has one channel and can be measured beside ours: the same images, the same bits/dim.
"""

import runpy
import sys

from PIL import Image

if __name__ == "__main__":
    convert = Image.Image.convert
    Image.Image.convert = lambda image, *_, **__: convert(image, "L")  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
