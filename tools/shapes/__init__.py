"""A tiny world of shapes, the judge that reads its images, and the models that learn to draw it."""
