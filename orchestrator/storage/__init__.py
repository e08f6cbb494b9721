"""Models, pending runs and locks as files, without MLflow."""
