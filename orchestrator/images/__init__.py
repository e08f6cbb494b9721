"""The import path of `DatasetInfo` in plug-ins written for earlier versions; see `orchestrator.data`."""
