"""What every room stands on: errors, keys, schemas, files, shards, records, the runner."""
