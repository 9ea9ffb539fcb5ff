"""Training: schedules, the learning-rate range test, the loop, the frozen head, fine-tuning."""
