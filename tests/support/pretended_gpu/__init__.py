"""A pretended GPU: the engine runs unmodified on tensors of the CPU that say that they lie on `cuda:0`.

Most faults of a program that runs on a GPU show without one. A tensor of the host meets one of the device,
which torch refuses. Or the host asks for a value that the device has not computed yet, and stands still
until it has: the program is right, but the GPU is idle. Neither shows on a CPU, which has one memory.

A `DeviceTensor` wraps a plain tensor of the CPU, which has its values. To torch, its device is `cuda:0`. Each
operation on it is handed to `dispatch_rules`, which refuse what a GPU would refuse, note what a GPU would be
waited for, and let the CPU compute the values. `device_events` says what is noted. `pretended_cuda` replaces
the functions of `torch.cuda` that ask for a driver. `audited_run` runs whole jobs, those of `pretended_jobs`,
and `traffic` counts what they asked for. `python -m tests.support.pretended_gpu` prints the counts.

What it cannot know:

- Speed and memory. An operation counts as one kernel; a real one may need several, or a library's own.
- The values of a GPU, which rounds in another way than a CPU.
- Races. A copy that runs beside other work is complete at once here, so it is never read too early.
- What a library of CUDA waits for by itself. `dispatch_rules` lists what is known of solvers.

The rules are those of torch 2.13, read in its source. `benchmarks/` measures on a real GPU.
"""
