"""Fine-tuning: which parameters train, and low-rank additions that are merged into the weights at export."""
