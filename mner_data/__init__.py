"""Posts as data sets: label files, images, regions, and the generator of synthetic posts."""
