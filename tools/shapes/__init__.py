"""A tiny world of shapes, the judge that reads its pictures, and the models that learn to draw it."""
