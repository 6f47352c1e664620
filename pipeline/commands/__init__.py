"""The commands of plantmix, one a file: parse, check, call, print."""
