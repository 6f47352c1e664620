"""URLs in, mixed webdataset shards out: the `plantmix` command."""
