"""The MLflow pages of a store."""
