"""The middle floor: what runs on a worker. Bases, tasks, profiling, adapters, fine-tuning."""
