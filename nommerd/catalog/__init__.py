"""What jobs can name: presets and pipelines, from the operator's disk and from the store."""

from nommerd.catalog.disk import Catalog, Kind, Source, load_stages, shipped

__all__ = ["Catalog", "Kind", "Source", "load_stages", "shipped"]
