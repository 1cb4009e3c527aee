"""What torch can compute on here, as JSON: `python -m actors.engine.device_facts`."""

import json
import sys
import warnings
from typing import Any

import torch


def device_facts() -> dict[str, Any]:
    """torch's build, the GPUs that it can use, and why it can use none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "reason": " ".join(str(caught[0].message).split()) if caught else "",
        "devices": [_facts_of(index) for index in range(torch.cuda.device_count() if is_available else 0)],
    }


def _facts_of(index: int) -> dict[str, Any]:
    device = torch.device("cuda", index)
    facts = {
        "name": torch.cuda.get_device_name(device),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
        "free_bytes": 0,
        "bfloat16": False,
        "fault": "",
    }
    try:
        with torch.cuda.device(device):
            facts["free_bytes"] = torch.cuda.mem_get_info()[0]
            facts["bfloat16"] = torch.cuda.is_bf16_supported(including_emulation=False)
        # A build without kernels for this GPU, or a broken GPU, shows only when it computes.
        torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        facts["fault"] = " ".join(str(error).split())[:300]
    return facts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(device_facts()))
