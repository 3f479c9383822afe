"""A Flower app: handwritten digits of 8 x 8 pixels."""
