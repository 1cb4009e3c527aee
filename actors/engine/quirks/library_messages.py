"""Messages of diffusers and transformers that the person who runs a job can do nothing about.

diffusers 0.42 and transformers 5.23 draw a bar for each checkpoint that they load, and diffusers warns of its
own use of its old functions. These would break up the progress that darkroom shows, and fill workers' logs.
What they log is kept to errors by actors/worker_process.py, because some of it comes when they are imported.
"""

import warnings

from diffusers.utils import logging as of_diffusers
from transformers.utils import logging as of_transformers


def hide_library_messages() -> None:
    """Let both libraries draw no bars in this process, and hide diffusers' warnings about itself."""
    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
