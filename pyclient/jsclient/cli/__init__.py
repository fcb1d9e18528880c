"""The command line `jsctl`. A subcommand imports its modules when it runs, so that `--help` is quick."""
