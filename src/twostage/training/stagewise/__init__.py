"""Stage-by-stage training: fine-tuning a network on regions, then SVMs, then ridge regressors."""
