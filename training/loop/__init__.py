"""Training: the loop, its checkpoints, a frozen backbone's features, and what a CPU needs."""
