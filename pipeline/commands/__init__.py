"""The commands of plantmix, one a file: its parser, its run, and what it prints."""
