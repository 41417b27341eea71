"""What a run computes on: the CPUs and GPUs of this machine, and the processes that share it."""
