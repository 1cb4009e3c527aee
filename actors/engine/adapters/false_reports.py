"""Keeps the libraries' reports that are wrong, or that repeat the plan, out of a worker's log."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = ("diffusers.loaders", "transformers")


@contextmanager
def without_false_reports() -> Iterator[None]:
    """While the block runs, diffusers, transformers and peft report only errors.

    For each further LoRA, transformers 5.23 reports the weights of those before it as missing. diffusers
    0.42.1 reports each component that a LoRA does not change, and peft 0.21.2 each LoRA that is dropped.
    """
    loggers = [logging.getLogger(name) for name in _NAMES]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
