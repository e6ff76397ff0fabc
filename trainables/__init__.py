"""What runs on a worker: bases, tasks, profiling, adapters, fine-tuning and the resident workers."""
