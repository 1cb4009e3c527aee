"""The engine turns opened rows into pixels. Only it and the demo import torch."""
