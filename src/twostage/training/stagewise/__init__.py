"""Training stage by stage: networks as classifiers of regions, then SVMs, then ridge regressors."""
