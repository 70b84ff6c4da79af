"""What a step of training minimises: one small file a baseline, all on the one loop of `train`."""
