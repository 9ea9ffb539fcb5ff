"""Training: the loop, the head on a frozen body, fine-tuning, the learning-rate range test and the schedules."""
