"""How long fetch waits and how much it tries, where no setting says so; `fetch.network` holds what users turn."""

CONNECT_SECONDS = 10.0  # longest wait for a connection, and for the addresses of a name
READ_SECONDS = 20.0  # longest silence within an answer
BACKOFF_SECONDS = 1.0  # pause before the first retry; it doubles each time, give or take half of it at random
HOST_PATIENCE_SECONDS = 120.0  # longest that rows wait for a closed host, and longest Crawl-delay that is kept
BREAKER_FAILURES = 6  # failures in a row to reach a host, after which it counts as dead
BREAKER_SECONDS = 300.0  # how long a dead host is left alone
DECODE_THREADS = 2  # pictures decoded at a time in one worker; each may need the memory of `image.max_pixels`
