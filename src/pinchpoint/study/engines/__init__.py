"""Executors: this process, processes of this machine, Ray, SLURM."""
