"""The stages of run.sh: what they need and leave, whether they are done, how their commands run here or by Slurm."""
