"""What a study writes: files, exports, schemas, trackers."""
