"""How a run scales over the ranks of this machine: every layout against one GPU, in time, traffic and results."""
